"""Reliability diagrams against closed forms and scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from dvp_jax.metrics.reliability import reliability


def test_errors_of_two_bins_are_those_worked_out_by_hand():
    # Four at 0.75, of which three are right: no gap. Six at 0.25, of which three are right: a gap of 0.25.
    confidences = np.array([0.75] * 4 + [0.25] * 6)
    correct = np.array([1, 1, 1, 0, 1, 1, 1, 0, 0, 0], bool)
    diagram = reliability(confidences, correct, bins=2)
    assert diagram.count.tolist() == [6, 4]
    np.testing.assert_allclose(diagram.confidence, [0.25, 0.75])
    np.testing.assert_allclose(diagram.accuracy, [0.5, 0.75])
    assert diagram.expected_error == pytest.approx(0.6 * 0.25)
    assert diagram.maximum_error == pytest.approx(0.25)


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
def test_ece_of_evenly_spread_confidences_is_the_area_between_the_curves(power):
    # Confidence c evenly spread, right with probability c ** power: the area of c - c ** power over [0, 1].
    rng = np.random.default_rng(0)
    confidences = rng.uniform(size=200_000)
    correct = rng.uniform(size=200_000) < confidences**power
    diagram = reliability(confidences, correct, bins=50)
    assert diagram.expected_error == pytest.approx(1 / 2 - 1 / (power + 1), abs=0.006)
    largest = power ** (1 / (1 - power)) if power > 1 else 0.0  # where the derivative of c - c ** power is 0
    assert diagram.maximum_error == pytest.approx(largest - largest**power, abs=0.02)


@pytest.mark.parametrize("bins", [1, 3, 10])
def test_bins_are_those_of_scikit_learn(bins):
    rng = np.random.default_rng(1)
    confidences = np.concatenate([rng.beta(8, 2, 300), np.linspace(0, 1, 11), [0.0, 1.0, 0.7, 0.3]])
    correct = rng.uniform(size=len(confidences)) < 0.8
    accuracy, confidence = calibration_curve(correct, confidences, n_bins=bins)
    diagram = reliability(confidences, correct, bins)
    held = diagram.count > 0
    np.testing.assert_allclose(diagram.accuracy[held], accuracy)
    np.testing.assert_allclose(diagram.confidence[held], confidence)
    assert diagram.count.sum() == len(confidences)
    assert diagram.maximum_error == pytest.approx(np.abs(accuracy - confidence).max())


def test_empty_bins_count_for_nothing():
    diagram = reliability(np.array([0.95, 0.95]), np.array([True, False]), bins=10)
    assert diagram.count.tolist() == [0] * 9 + [2]
    assert np.isnan(diagram.accuracy[:9]).all() and np.isnan(diagram.confidence[:9]).all()
    assert diagram.expected_error == diagram.maximum_error == pytest.approx(0.45)


@pytest.mark.parametrize(
    ("confidences", "correct", "bins", "parts"),
    [
        ([], [], 10, ("confidences", "N > 0")),
        ([0.5, 0.5], [True], 10, ("(2,)", "(1,)")),
        ([[0.5]], [[True]], 10, ("(1, 1)",)),
        ([0.5, 1.5], [True, True], 10, ("1.5", "0 to 1")),
        ([-0.5, 0.5], [True, True], 10, ("-0.5", "0 to 1")),
        ([0.5, np.nan], [True, True], 10, ("nan", "0 to 1")),
        ([0.5], [True], 0, ("bins is 0",)),
    ],
)
def test_what_cannot_be_binned_is_refused(confidences, correct, bins, parts):
    with pytest.raises(ValueError) as error:
        reliability(np.array(confidences, float), np.array(correct, bool), bins)
    assert all(part in str(error.value) for part in parts)
