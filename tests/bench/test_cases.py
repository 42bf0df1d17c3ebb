"""Forced exits: the exits that decoding takes are those asked for."""

import dataclasses
import itertools

import numpy as np
import pytest

import dvp_jax
from dvp_jax.bench.cases import (
    SPREAD,
    Benchmark,
    Case,
    forced_depths,
    forcing_thresholds,
    grid,
    make_benchmark,
    make_model,
    model_config,
)
from dvp_jax.decode.api import decode, encode
from dvp_jax.t5.config import SHAPES
from tests.models import both


@pytest.mark.parametrize(
    ("method", "depth"), [*itertools.product(["calm", "dvp"], [SPREAD, 2, 3, 4]), ("shallow_deep", SPREAD)]
)
def test_exits_are_those_asked_for(method, depth):
    _, model = both("t5", 0, 4.0, 4.0)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, eos_token_id=()))
    cfg = dvp_jax.DecodeConfig(method=method, max_new_tokens=12, prune_size=8)
    depths = forced_depths(depth, cfg.policy(4, 211), 12)
    assert depths.shape == (12,)
    spread = {2, 4} if method == "shallow_deep" else {2, 3, 4}
    assert (set(depths) == spread) if depth == SPREAD else (depths == depth).all()
    out = decode(model, encode(model, np.array([[3, 4]]), np.ones((1, 2))), cfg, forcing_thresholds(depths, 4))
    np.testing.assert_array_equal(out.exit_layers[0], depths)


@pytest.mark.parametrize("method", ["calm", "dvp"])
def test_exits_fall_on_the_depths_that_are_asked(method):
    _, model = both("t5", 0, 4.0, 4.0)  # of 4 layers
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, eos_token_id=()))
    cfg = Case(method, 3, prune_size=8, exit_depths=2).config(4, 6)
    for depth, expected in ((2, {2}), (3, {4}), (4, {4}), (SPREAD, {2, 4})):
        depths = forced_depths(depth, cfg.policy(4, 211), 6)
        assert set(depths) == expected
        out = decode(model, encode(model, np.array([[3, 4]]), np.ones((1, 2))), cfg, forcing_thresholds(depths, 4))
        np.testing.assert_array_equal(out.exit_layers[0], depths)


def test_only_methods_that_choose_depths_are_timed_for_several_choices():
    cases = grid(24, ("full", "static", "calm", "dvp"), (12,), exit_depths=(None, 4))
    assert [(case.method, case.exit_depths) for case in cases] == [
        ("full", None), ("static", None), ("calm", None), ("calm", 4), ("dvp", None), ("dvp", 4)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "expected"), [("t5-small", {6, 3, 2}), ("t5-base", {12, 6, 3}), ("t5-large", {24, 12, 6})]
)
def test_depths_are_all_half_and_a_quarter_of_the_layers_unless_named(shape, expected):
    settings = {"exit_depths": [None], "branch_every": [None], "unembeddings": ["auto"], "max_waiting": [None]}
    benchmark = make_benchmark(shape, ["dvp", "full"], None, prune_size=64, dtype="float32", **settings)
    assert {case.depth for case in benchmark.cases if case.method == "dvp"} == expected
    assert benchmark.cases[0].method == "full"  # the others are compared with it


@pytest.mark.usefixtures("quick_compiler")
def test_every_draft_of_random_weights_is_right(monkeypatch):
    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 1, "num_decoder_layers": 3}
    monkeypatch.setitem(SHAPES, "tiny", dataclasses.replace(SHAPES["mt5-small"], vocab_size=211, **sizes))
    (case,) = grid(3, ("lossless",), (2,), prune_size=8, max_waiting=(2,))
    model, ids = make_model(Benchmark("tiny", (case,))), np.array([[3, 4, 5]])
    thresholds = forcing_thresholds(np.full(12, case.depth), 3)
    out = decode(model, encode(model, ids, ids > 0), case.config(3, 12), thresholds)
    np.testing.assert_array_equal(out.exit_layers, 2)
    assert not out.drafts.corrected.any()


def test_shallow_deep_is_timed_as_it_runs_by_default():
    (case,) = grid(4, ("shallow_deep",), (2,))
    assert case.config(4, 6).max_waiting == dvp_jax.DecodeConfig().max_waiting


def test_another_vocabulary_of_a_checkpoint_is_refused(checkpoint):
    with pytest.raises(ValueError, match="vocab_size is 7; allowed with a checkpoint: its own, 600"):
        model_config(Benchmark(str(checkpoint.folder), (), vocab_size=7))
