"""Measures of confidence against SciPy and closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from dvp_jax.exits.confidence import States, best_two, entropy, softmax_diff, softmax_max, state


def confidence(logits, measure=softmax_diff):
    logits = jnp.asarray(logits, jnp.float32)
    return np.asarray(measure(logits, best_two(logits)))


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=50), st.floats(-1e4, 1e4, width=32))
def test_softmax_diff_is_the_gap_between_the_two_largest_probabilities(row, shift):
    logits = np.float32(row) + np.float32(shift)
    exponentials = np.exp(logits.astype(np.float64) - logits.max())
    ordered = np.sort(exponentials / exponentials.sum())
    np.testing.assert_allclose(confidence(logits[None])[0], ordered[-1] - ordered[-2], atol=1e-6)


def test_softmax_diff_of_known_rows():
    log = np.log([[0.7, 0.2, 0.1], [0.4, 0.4, 0.2], [0.05, 0.05, 0.9]])
    np.testing.assert_allclose(confidence(log), [0.5, 0.0, 0.85], atol=1e-6)


@given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=50), st.floats(-1e4, 1e4, width=32))
def test_softmax_max_and_entropy_are_those_of_the_probabilities(row, shift):
    logits = np.float32(row) + np.float32(shift)
    probabilities = scipy.special.softmax(logits.astype(np.float64))
    np.testing.assert_allclose(confidence(logits[None], softmax_max)[0], probabilities.max(), atol=1e-6)
    expected = 1.0 - scipy.stats.entropy(probabilities) / np.log(len(row))
    np.testing.assert_allclose(confidence(logits[None], entropy)[0], expected, atol=1e-5)


@pytest.mark.parametrize("measure", [softmax_diff, softmax_max, entropy])
def test_a_masked_candidate_is_as_good_as_absent(measure):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 9)) * 4
    masked = np.full((20, 30), -np.inf)
    masked[:, 5:23:2] = logits
    np.testing.assert_allclose(confidence(masked, measure), confidence(logits, measure), atol=1e-6)


@pytest.mark.parametrize("measure", [softmax_diff, softmax_max, entropy])
def test_one_candidate_is_certain(measure):
    assert confidence([[-3.0], [7.0]], measure).tolist() == [1.0, 1.0]
    assert confidence([[-np.inf, -3.0, -np.inf], [7.0, -np.inf, -np.inf]], measure).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("measure", [softmax_diff, softmax_max, entropy])
def test_no_measure_exceeds_one_by_rounding(measure):
    rng = np.random.default_rng(0)
    for width in (2, 7, 300):
        logits = rng.normal(size=(500, width)) * 30
        logits[:100, 0] = 200.0
        assert (confidence(logits, measure) <= 1.0).all() and (confidence(logits, measure) >= 0.0).all()


def cosine(hidden, before):
    hidden, before = jnp.asarray(hidden, jnp.float32), jnp.asarray(before, jnp.float32)
    return np.asarray(state(States(hidden, before, hidden, None)))


def test_state_is_the_cosine_and_a_negative_one_counts_as_zero():
    rng = np.random.default_rng(0)
    hidden, before = rng.normal(size=(2, 200, 6)) + 0.5
    expected = [1.0 - scipy.spatial.distance.cosine(*pair) for pair in zip(hidden, before, strict=True)]
    assert min(expected) < -0.1
    np.testing.assert_allclose(cosine(hidden, before), np.maximum(expected, 0.0), atol=1e-6)
    assert cosine(np.zeros((1, 6)), before[:1]).tolist() == [0.0]


def test_the_cosine_of_a_state_and_itself_does_not_exceed_one_by_rounding():
    hidden = np.random.default_rng(0).normal(size=(1000, 33)) * 100
    assert (cosine(hidden, hidden) <= 1.0).all()
    np.testing.assert_allclose(cosine(hidden, hidden), 1.0, atol=1e-6)


def test_the_best_of_equal_candidates_is_the_first():
    assert best_two(jnp.array([[1.0, 3.0, 3.0, 2.0], [5.0, 5.0, 5.0, 5.0]])).candidate.tolist() == [1, 0]
