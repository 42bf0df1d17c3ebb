"""Early exits at a threshold against a slow count, and matching thresholds against trying all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dvp_jax.analysis.early_exits import early_exits, matching_threshold
from tests.analysis.helpers import count_early_exits

few = st.sampled_from([0.0, 0.1, 0.2, 0.5, 0.9, 1.0])  # few values, so that there are ties
SHAPE = st.tuples(st.integers(1, 8), st.integers(1, 3))


@given(st.data(), SHAPE, few)
def test_a_token_exits_at_the_first_depth_that_is_confident(data, shape, threshold):
    confidences, agrees = data.draw(arrays(float, shape, elements=few)), data.draw(arrays(bool, shape))
    exits, right = count_early_exits(confidences, agrees, threshold)
    share, agreement = early_exits(confidences, agrees, threshold)
    assert share == pytest.approx(exits / len(agrees))
    assert agreement == (pytest.approx(right / exits) if exits else None)


@given(st.data(), SHAPE, st.sampled_from([0.0, 0.25, 0.5, 2 / 3, 1.0]))
def test_no_lower_threshold_agrees_as_often(data, shape, agreement):
    confidences, agrees = data.draw(arrays(float, shape, elements=few)), data.draw(arrays(bool, shape))

    def count(threshold):
        return count_early_exits(confidences, agrees, threshold)

    def agrees_enough(threshold):
        exits, right = count(threshold)
        return exits > 0 and right >= agreement * exits

    # Between two of these nothing changes.
    enough = [threshold for threshold in (0.0, 0.1, 0.2, 0.5, 0.9, 1.0) if agrees_enough(threshold)]
    matching = matching_threshold(confidences, agrees, agreement)
    assert (matching is None) == (not enough)
    if enough:
        assert agrees_enough(matching) and count(matching) == count(enough[0])
        assert matching <= enough[0]
