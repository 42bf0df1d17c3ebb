"""Both loops over layers, and layers that run later than their token."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.decode.helpers import CALM, DECAY, DVP, FULL, MASS, SHALLOW, STATE, assert_same, prompts, run

pytestmark = pytest.mark.usefixtures("quick_compiler")


@settings(max_examples=15)
@given(
    rows=prompts,
    cfg=st.sampled_from([FULL, CALM, DVP, dataclasses.replace(DVP, min_exit_layer=3), STATE, MASS, DECAY]),
)
def test_both_layer_loops_give_the_same(rows, cfg):
    loops = [run(rows, dataclasses.replace(cfg, layer_loop=loop)) for loop in ("cond", "while")]
    assert_same(*loops)


@settings(max_examples=6)
@given(rows=prompts, max_waiting=st.sampled_from([1, 2, 5]))
def test_shallow_deep_is_the_same_however_many_tokens_wait(rows, max_waiting):
    cfg = dataclasses.replace(SHALLOW, max_new_tokens=12, max_waiting=8)
    assert_same(run(rows, dataclasses.replace(cfg, max_waiting=max_waiting)), run(rows, cfg))


def test_shallow_deep_exits_at_one_depth_or_the_last():
    out = run([[first, 5] for first in range(2, 10)], SHALLOW)
    assert set(np.unique(out.exit_layers)) <= {0, 2, 4} and {2, 4} <= set(np.unique(out.exit_layers))
