"""Branching after every layer or more seldom."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dvp_jax.decode.layer_loop import branch_every, grouped
from tests.decode.helpers import CALM, DECAY, DVP, FULL, LOSSLESS, MASS, STATE, assert_same, prompts, run

pytestmark = pytest.mark.usefixtures("quick_compiler")


@settings(max_examples=4)
@given(
    rows=prompts,
    cfg=st.sampled_from(
        [FULL, CALM, DVP, dataclasses.replace(DVP, min_exit_layer=3), STATE, MASS, DECAY, LOSSLESS]
    ),
)
def test_branching_more_seldom_gives_the_same(rows, cfg):
    often, seldom = (run(rows, dataclasses.replace(cfg, branch_every=every)) for every in (1, 3))
    assert_same(often, seldom)


@pytest.mark.parametrize(
    ("depths", "candidates", "every", "groups"),
    [
        ([3, 4, 5, 6], [2, 3, 4, 5], 1, [[3], [4], [5], [6]]),
        ([3, 4, 5, 6], [2, 3, 4, 5], 2, [[3, 4], [5, 6]]),
        ([3, 4, 5, 6, 7], [2, 4, 6], 1, [[3, 4], [5, 6], [7]]),  # a branch only where a row may have exited
        ([3, 4, 5, 6, 7, 8], [2, 4, 5, 7], 3, [[3, 4, 5], [6, 7, 8]]),
        ([], [2], 1, []),
    ],
)
def test_groups_of_layers_end_at_candidate_depths(depths, candidates, every, groups):
    assert grouped(depths, candidates, every) == groups


def test_no_more_than_eight_conditionals_are_nested_where_a_branch_is_dear():
    for num_layers in range(1, 60):
        deeper = range(3, 3 + num_layers)
        assert len(grouped(deeper, range(2, 3 + num_layers), branch_every("gpu", num_layers))) <= 8
        assert len(grouped(deeper, range(2, 3 + num_layers), branch_every("cpu", num_layers))) == num_layers
