"""Layers that run later than their token: drafts that the full model verifies, and shallow-deep."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dvp_jax
from tests.decode.helpers import DECAY, FULL, LOSSLESS, MASS, MODEL, SHALLOW, assert_same, prompts, run
from tests.models import both

pytestmark = pytest.mark.usefixtures("quick_compiler")

THRESHOLDS = st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0])
DRAFTS = {
    "dvp": LOSSLESS,
    "one token": dataclasses.replace(LOSSLESS, prune_size=1),
    "calm": dataclasses.replace(LOSSLESS, prune_size=None),
    "state": dataclasses.replace(LOSSLESS, prune_size=None, confidence="state"),
    "mass": dataclasses.replace(MASS, method="lossless"),
    "decay": dataclasses.replace(DECAY, method="lossless", final_vocab="full"),
    "recent": dataclasses.replace(LOSSLESS, prune_rule="recent", prune_size=40),
}


def texts(out):
    return [out.tokens[row, :length].tolist() for row, length in enumerate(out.lengths)]


SETTINGS = {
    "rows": prompts,
    "name": st.sampled_from(sorted(DRAFTS)),
    "threshold": THRESHOLDS,
    "waiting": st.sampled_from([1, 3, 8]),
}


@settings(max_examples=4)
@given(**SETTINGS)
def test_tokens_are_those_of_the_full_model(rows, name, threshold, waiting):
    check_tokens(rows, name, threshold, waiting)


@pytest.mark.slow
@settings(max_examples=200)
@given(**SETTINGS)
def test_tokens_of_many_settings_are_those_of_the_full_model(rows, name, threshold, waiting):
    check_tokens(rows, name, threshold, waiting)


def check_tokens(rows, name, threshold, waiting):
    cfg = dataclasses.replace(DRAFTS[name], threshold=threshold, max_waiting=waiting, max_new_tokens=12)
    out, full = run(rows, cfg), run(rows, dataclasses.replace(FULL, max_new_tokens=12))
    np.testing.assert_array_equal(out.tokens, full.tokens)
    np.testing.assert_array_equal(out.lengths, full.lengths)
    padding = np.arange(12) >= out.lengths[:, None]
    assert not out.exit_layers[padding].any() and not out.confidences[padding].any()
    assert not out.drafts.corrected[padding].any()
    assert not (out.drafts.corrected & (out.exit_layers == 4)).any(), "the full model corrects drafts only"
    depths = out.exit_layers.sum(axis=1)  # what runs at least, where no draft is taken back
    assert (depths <= out.drafts.layers_run).all()
    if waiting == 1:
        np.testing.assert_array_equal(out.drafts.layers_run, 4 * out.lengths)


def test_drafts_are_confirmed_replaced_and_taken_back():
    rows = [[first, 5, second] for first, second in zip(range(2, 34), range(90, 122), strict=True)]
    out = run(rows, dataclasses.replace(LOSSLESS, threshold=0.0, max_new_tokens=12, max_waiting=4))
    np.testing.assert_array_equal(out.tokens, run(rows, dataclasses.replace(FULL, max_new_tokens=12)).tokens)
    drafts, corrected = (out.exit_layers > 0) & (out.exit_layers < 4), out.drafts.corrected
    assert corrected.any() and (drafts & ~corrected).any()
    assert (out.drafts.layers_run < 4 * out.lengths).any(), "verifying together saves layers"
    # A draft that is replaced after others were confirmed: the row went back while others went on.
    followed = corrected[:, 1:] & (drafts & ~corrected)[:, :-1]
    assert followed.any()
    alone = run(rows[:1], dataclasses.replace(LOSSLESS, threshold=0.0, max_new_tokens=12, max_waiting=4))
    assert_same(out, alone, slice(1))


def test_all_drafts_right_run_the_deeper_layers_once_for_all_that_wait():
    # The deeper layers add nothing, so every depth reads the same token.
    _, model = both(*MODEL)
    decoder = {**model.params["decoder"]}
    for index in (2, 3):
        layer = {name: dict(part) for name, part in decoder[f"layers_{index}"].items()}
        for part, weight in (("self_attention", "output"), ("cross_attention", "output"), ("feed_forward", "wo")):
            layer[part][weight] = 0.0 * layer[part][weight]
        decoder[f"layers_{index}"] = layer
    model = dataclasses.replace(model, params={**model.params, "decoder": decoder})
    ids = np.array([[9, 30, 4]])
    cfg = dataclasses.replace(
        LOSSLESS, threshold=0.0, min_exit_layer=2, prune_layer=2, max_new_tokens=12, max_waiting=4
    )
    out = dvp_jax.generate(model, ids, np.ones_like(ids), cfg)
    assert out.lengths[0] == 12, "another prompt is needed, whose text does not end by itself"
    assert not out.drafts.corrected.any() and set(out.exit_layers[0]) == {2}
    # Of each four tokens three run two layers, and the fourth takes them through all.
    assert out.drafts.layers_run[0] == 3 * (2 + 2 + 2 + 4)


@settings(max_examples=2)
@given(rows=prompts, max_waiting=st.sampled_from([1, 2, 5]))
def test_shallow_deep_is_the_same_however_many_tokens_wait(rows, max_waiting):
    cfg = dataclasses.replace(SHALLOW, max_new_tokens=12, max_waiting=8)
    one, other = run(rows, dataclasses.replace(cfg, max_waiting=max_waiting)), run(rows, cfg)
    assert not one.drafts.corrected.any()
    # Only how many layers run one after the other depends on it.
    assert_same(dataclasses.replace(one, drafts=None), other)


def test_shallow_deep_exits_at_one_depth_or_the_last():
    out = run([[first, 5] for first in range(2, 10)], SHALLOW)
    assert set(np.unique(out.exit_layers)) <= {0, 2, 4} and {2, 4} <= set(np.unique(out.exit_layers))


@pytest.mark.parametrize("method", ["dvp", "lossless"])
def test_even_the_smallest_guess_is_all_that_an_exit_can_choose_from(method):
    cfg = dataclasses.replace(LOSSLESS, method=method, prune_rule="recent", prune_size=1, threshold=0.0)
    out = run([[9, 30, 4]], cfg)
    if method == "dvp":  # nothing was read from the full vocabulary yet, which leaves id 0
        assert set(out.exit_layers[0]) == {1} and not out.tokens[0].any()
    else:  # every draft but that id is replaced, if the full model does not choose it
        assert out.drafts.corrected[0, 0] and out.tokens[0, 0] == run([[9, 30, 4]], FULL).tokens[0, 0]
