"""Reports of ranks from a table made by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dvp_jax
from dvp_jax.analysis.ranks import prune_sizes, rank_report, rank_table, size_for_coverage
from dvp_jax.analysis.tokens import DepthReadings, TokenTable

# Four tokens of two texts at two depths.
TABLE = TokenTable(
    text=np.array([0, 0, 0, 1]),
    position=np.array([0, 1, 2, 0]),
    token=np.array([5, 6, 1, 5]),
    ranks=np.array([[0, 0], [3, 0], [40, 0], [1, 0]]),
    readings={
        "full": DepthReadings(
            candidates=np.array([[5, 5], [9, 6], [9, 1], [9, 5]]),
            confidences=np.array([[0.9, 1.0], [0.1, 0.8], [0.2, 0.6], [0.4, 0.4]]),
        )
    },
)


def test_a_report_says_what_each_depth_knew():
    report = rank_report(TABLE, "full", [1, 2, 4, 100])
    first, last = report.pop("depths")
    assert report == {"tokens": 4, "texts": 2, "sizes": [1, 2, 4, 100]}
    assert first == {
        "depth": 1,
        "rank_percentiles": {"5": 1, "25": 1, "50": 2, "75": 4, "95": 41},  # ranks that occur, from 1
        "coverage": [0.25, 0.5, 0.75, 1.0],
        "size_for_coverage": 41,
        "confidence": pytest.approx(0.4),
        "agreement": 0.25,
    }
    assert last["coverage"] == [1.0] * 4 and last["agreement"] == 1.0 and last["size_for_coverage"] == 1


def test_the_table_has_a_line_for_each_depth():
    lines = rank_table(rank_report(TABLE, "full", [1])).markdown().splitlines()
    assert len(lines) == 4
    assert lines[2] == "| 1 | 25.00 | 0.400 | 2 | up to 41 | 41 |"


@given(st.lists(st.integers(0, 30), min_size=1, max_size=120), st.sampled_from([0.01, 0.29, 0.5, 0.9, 0.99, 1.0]))
def test_no_smaller_size_covers_as_much(ranks, share):
    def covered(size):
        return sum(rank < size for rank in ranks) / len(ranks)

    expected = next(size for size in range(1, 32) if covered(size) >= share)
    assert size_for_coverage(np.array(ranks), share) == expected


@pytest.mark.parametrize(
    ("ranks", "share", "part"), [([], 0.5, "ranks"), ([1], 0.0, "share"), ([1], 1.1, "share")]
)
def test_a_coverage_that_no_size_has_is_refused(ranks, share, part):
    with pytest.raises(ValueError, match=part):
        size_for_coverage(np.array(ranks, int), share)


def test_sizes_are_powers_of_two_the_vocabulary_and_the_methods_own():
    methods = [
        dvp_jax.DecodeConfig(method="dvp", prune_size=20),
        dvp_jax.DecodeConfig(method="calm", prune_size=21),  # it does not prune
    ]
    assert prune_sizes(methods, 100) == [1, 2, 4, 8, 16, 20, 32, 64, 100]
    assert prune_sizes([], 8) == [1, 2, 4, 8]
