"""Reliability: is a confidence of 0.9 right nine times in ten? (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Reliability:
    """A reliability diagram (Guo et al., section 2). A bin contains its upper edge.

    Attributes:
        confidence: mean confidence of each bin, NaN for an empty bin.
        accuracy: share of correct tokens in each bin, NaN for an empty bin.
        count: number of tokens in each bin.
    """

    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]
    count: Int[np.ndarray, " bins"]

    @property
    def expected_error(self) -> float:
        """ECE: the mean gap between accuracy and confidence, weighted by the counts of the bins (equation 3)."""
        filled = self.count > 0
        return float(np.average(self._gap[filled], weights=self.count[filled]))

    @property
    def maximum_error(self) -> float:
        """MCE: the largest gap between accuracy and confidence of any bin (equation 5)."""
        return float(np.nanmax(self._gap))

    @property
    def _gap(self) -> Float[np.ndarray, " bins"]:
        return np.abs(self.accuracy - self.confidence)


def reliability(
    confidences: Float[np.ndarray, " tokens"], correct: Bool[np.ndarray, " tokens"], bins: int = 10
) -> Reliability:
    """Computes the reliability diagram of tokens.

    Args:
        confidences: confidence in each token, in [0, 1].
        correct: whether each token is correct.
        bins: number of bins of equal width over [0, 1].

    Raises:
        ValueError: there are no tokens, the shapes differ, a confidence is outside [0, 1], or bins is below 1.
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
