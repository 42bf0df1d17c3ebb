"""The frontier against its definition, pair by pair."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dvp_jax.report.pareto import pareto_frontier

few = st.integers(0, 4).map(float)  # few values, so that there are ties


def beats(one, other):
    """At least as cheap and as good, and better in one of the two."""
    return one[0] <= other[0] and one[1] >= other[1] and one != other


@given(st.lists(st.tuples(few, few), max_size=12))
def test_the_frontier_is_what_no_point_beats(points):
    frontier = pareto_frontier([cost for cost, _ in points], [quality for _, quality in points])
    unbeaten = [i for i, point in enumerate(points) if not any(beats(other, point) for other in points)]
    assert sorted(frontier) == unbeaten
    assert [points[i] for i in frontier] == sorted(points[i] for i in unbeaten)  # from cheap to good


def test_infinite_costs_and_qualities_are_points_too():
    assert pareto_frontier([math.inf, 1.0], [2.0, -math.inf]) == [1, 0]


@pytest.mark.parametrize(
    ("costs", "qualities", "part"),
    [([1.0], [1.0, 2.0], "(2,)"), ([1.0], [math.nan], "NaN"), ([math.nan], [1.0], "NaN")],
)
def test_points_that_cannot_be_compared_are_refused(costs, qualities, part):
    with pytest.raises(ValueError) as error:
        pareto_frontier(costs, qualities)
    assert part in str(error.value)
