"""Invariants of whole texts: what must give the same tokens and exits."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dvp_jax
from dvp_jax.decode.api import decode, encode
from tests.decode.helpers import (
    CALM,
    DECAY,
    DVP,
    FULL,
    LOSSLESS,
    MASS,
    MODEL,
    ORACLE,
    SHALLOW,
    STATE,
    assert_same,
    padded,
    prompts,
    run,
)
from tests.models import both

pytestmark = pytest.mark.usefixtures("quick_compiler")


@settings(max_examples=5)
@given(
    rows=prompts,
    cfg=st.sampled_from([CALM, STATE, DVP, MASS, dataclasses.replace(DECAY, final_vocab="full"), SHALLOW]),
    every=st.sampled_from([1, 3]),
)
def test_threshold_one_never_exits(rows, cfg, every):
    never = dataclasses.replace(cfg, threshold=1.0, branch_every=every)
    assert_same(run(rows, never), run(rows, dataclasses.replace(cfg, method="full")))


@settings(max_examples=15)
@given(rows=prompts, threshold=st.sampled_from([0.1, 0.4, 0.8]), final_vocab=st.sampled_from(["full", "pruned"]))
def test_keeping_the_full_vocabulary_equals_calm(rows, threshold, final_vocab):
    everything = dataclasses.replace(DVP, prune_size=211, threshold=threshold, final_vocab=final_vocab)
    calm = run(rows, dataclasses.replace(CALM, threshold=threshold))
    assert_same(run(rows, everything), calm)
    assert_same(run(rows, dataclasses.replace(everything, prune_rule="decay", prune_size_min=211)), calm)


@settings(max_examples=15)
@given(
    rows=prompts,
    cfg=st.sampled_from([FULL, CALM, DVP, STATE, MASS, DECAY, ORACLE, SHALLOW]),
    left=st.booleans(),
    extra=st.sampled_from([0, 40]),
)
def test_each_row_of_a_batch_equals_the_row_alone(rows, cfg, left, extra):
    batch = run(rows, cfg, width=max(map(len, rows)) + extra, left=left)
    for index, row in enumerate(rows):
        assert_same(batch, run([row], cfg), rows=[index])


def test_rows_of_one_batch_exit_at_different_depths():
    out = run([[first, 5] for first in range(2, 10)], CALM)
    assert any(len(set(column)) > 1 for column in out.exit_layers.T), "else batching was not tested above"


def test_static_at_the_last_depth_equals_full():
    rows = [[3, 4, 5], [9]]
    static = dataclasses.replace(CALM, method="static", static_exit_layer=4)
    assert_same(run(rows, static), run(rows, FULL))


def test_one_kept_token_always_exits_after_pruning_unless_the_threshold_is_one():
    rows = [[3, 4, 5], [9, 8]]
    one = dataclasses.replace(DVP, prune_size=1, min_exit_layer=2, threshold=0.99)
    out = run(rows, one)
    assert (out.exit_layers == np.where(out.exit_layers > 0, 2, 0)).all()
    assert (out.confidences[out.exit_layers > 0] == 1.0).all()
    assert_same(run(rows, dataclasses.replace(one, threshold=1.0)), run(rows, FULL))


def test_forced_exits_follow_thresholds_by_token_and_depth():
    _, model = both(*MODEL)
    thresholds = np.full((8, 4), np.inf, np.float32)
    wanted = [1, 4, 2, 3, 3, 1, 4, 2]
    for t, depth in enumerate(wanted):
        if depth < 4:
            thresholds[t, depth - 1] = -np.inf
    unending = dataclasses.replace(model, config=dataclasses.replace(model.config, eos_token_id=()))
    out = decode(unending, encode(unending, [[3, 4]], [[1, 1]]), CALM, thresholds)
    assert out.exit_layers.tolist() == [wanted]
    with pytest.raises(ValueError, match=r"thresholds has shape \(8, 3\); allowed: \(8, 4\)"):
        decode(unending, encode(unending, [[3, 4]], [[1, 1]]), CALM, thresholds[:, :3])


@pytest.mark.parametrize("cfg", [FULL, LOSSLESS], ids=["full", "lossless"])
def test_each_of_several_end_tokens_ends_a_text_as_in_hugging_face(cfg):
    peer, model = both("t5", 0, 4.0, 4.0, num_layers=2, num_decoder_layers=2)
    ids, mask = padded([[3, 4], [7, 8], [9, 2, 5]])

    def generate(ends):
        options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": ends, "pad_token_id": 0}
        return peer.generate(torch.tensor(ids), attention_mask=torch.tensor(mask), **options)[:, 1:].tolist()

    free = generate(None)
    ends = (free[0][2], free[1][4])  # tokens that the texts have
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, eos_token_id=ends))
    out = dvp_jax.generate(model, ids, mask, cfg)
    expected = generate(list(ends))
    assert len({row.index(0) if 0 in row else 8 for row in expected}) > 1, "texts of one length test little"
    assert out.tokens[:, : len(expected[0])].tolist() == expected
    assert not out.tokens[:, len(expected[0]) :].any()


METHODS = [DVP, STATE, ORACLE, LOSSLESS]


@pytest.mark.parametrize("cfg", METHODS, ids=lambda cfg: f"{cfg.method}, {cfg.confidence}")
def test_a_token_of_logits_that_are_not_finite_says_so_and_no_other_token_does(cfg):
    rows, config = [[3, 5], [4], [9, 8]], both(*MODEL)[1].config

    def decoded(name, value):
        def change(path, leaf):
            return leaf + value if name in jax.tree_util.keystr(path, simple=True, separator="/") else leaf

        model = both(*MODEL)[1]
        params = jax.tree_util.tree_map_with_path(change, model.params)
        return dvp_jax.generate(dataclasses.replace(model, params=params), *padded(rows), cfg)

    last = decoded(f"decoder/layers_{config.num_decoder_layers - 1}/feed_forward/wo", np.nan)
    is_nan = np.isnan(last.confidences)
    if cfg in (LOSSLESS, ORACLE):  # whose tokens are those of the last depth, wherever they exit
        assert is_nan.any(axis=1).all()
    else:
        np.testing.assert_array_equal(is_nan, last.exit_layers == config.num_decoder_layers)
    assert np.isnan(decoded("decoder/final_norm/scale", np.float32(3e38)).confidences[:, 0]).all()
