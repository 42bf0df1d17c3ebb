"""Calibration: does a confidence of 0.9 mean right nine times in ten? (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Reliability:
    """A reliability diagram: confidences in bins of equal width, the upper edge included (Guo et al., section 2).

    Attributes:
        confidence: mean confidence of each bin, NaN where it is empty.
        accuracy: share of each bin that is correct, NaN where it is empty.
        count: how many fell into each bin.
    """

    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    count: Int[np.ndarray, " bins"]

    @property
    def expected_error(self) -> float:
        """ECE: the gap between accuracy and confidence, averaged over the bins by what they hold (equation 3)."""
        held = self.count > 0
        return float(np.average(self._gap[held], weights=self.count[held]))

    @property
    def maximum_error(self) -> float:
        """MCE: the largest gap of any bin, however few it holds (equation 5)."""
        return float(np.nanmax(self._gap))

    @property
    def _gap(self) -> Float[np.ndarray, " bins"]:
        return np.abs(self.accuracy - self.confidence)


def reliability(
    confidences: Float[np.ndarray, " tokens"], correct: Bool[np.ndarray, " tokens"], bins: int = 10
) -> Reliability:
    """The reliability diagram of confidences.

    Args:
        confidences: in [0, 1].
        correct: whether each was right.
        bins: of equal width over [0, 1].

    Raises:
        ValueError: nothing to bin, shapes that differ, a confidence outside [0, 1], bins below 1.
    """
    confidences, correct = np.asarray(confidences, np.float64), np.asarray(correct, bool)
    if confidences.ndim != 1 or confidences.shape != correct.shape or not len(confidences):
        raise ValueError(
            f"confidences has shape {confidences.shape} and correct {correct.shape}; allowed: (N,) for both, N > 0"
        )
    if not ((confidences >= 0) & (confidences <= 1)).all():  # NaN fails too
        raise ValueError(f"confidences spans {confidences.min()} to {confidences.max()}; allowed: 0 to 1")
    if bins < 1:
        raise ValueError(f"bins is {bins}; allowed: at least 1")
    edges = np.linspace(0, 1, bins + 1)
    index = np.searchsorted(edges[1:-1], confidences)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):  # 0 / 0 in an empty bin
        return Reliability(
            confidence=np.bincount(index, confidences, minlength=bins) / count,
            accuracy=np.bincount(index, correct, minlength=bins) / count,
            count=count,
        )
