"""Forced exits: the exits that decoding takes are those asked for."""

import dataclasses
import itertools

import numpy as np
import pytest

import dvp_jax
from dvp_jax.bench.cases import SPREAD, exit_depths, forcing_thresholds
from dvp_jax.decode.api import decode, encode
from tests.models import both


@pytest.mark.parametrize(
    ("method", "depth"), [*itertools.product(["calm", "dvp"], [SPREAD, 2, 3, 4]), ("shallow_deep", SPREAD)]
)
def test_exits_are_those_asked_for(method, depth):
    _, model = both("t5", 0, 4.0, 4.0)
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, eos_token_id=-1))
    cfg = dvp_jax.DecodeConfig(method=method, max_new_tokens=12, prune_size=8)
    depths = exit_depths(depth, cfg.policy(4, 211), 4, 12)
    assert depths.shape == (12,)
    spread = {2, 4} if method == "shallow_deep" else {2, 3, 4}
    assert (set(depths) == spread) if depth == SPREAD else (depths == depth).all()
    out = decode(model, encode(model, np.array([[3, 4]]), np.ones((1, 2))), cfg, forcing_thresholds(depths, 4))
    np.testing.assert_array_equal(out.exit_layers[0], depths)
