"""What a confidence threshold does to tokens: how many exit early, and how often they are right."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float


class EarlyExits(NamedTuple):
    """The tokens that a threshold lets exit early."""

    share: float  # of all tokens
    agreement: float | None  # share of the exiting tokens that are the full model's; None if no token exits


def early_exits(
    confidences: Float[np.ndarray, "tokens depths"], agrees: Bool[np.ndarray, "tokens depths"], threshold: float
) -> EarlyExits:
    """Lets every token exit at the first candidate depth whose confidence exceeds the threshold.

    Args:
        confidences: the confidence at each candidate depth.
        agrees: whether the token that the depth would produce is the full model's.
        threshold: what confidence must exceed.
    """
    exceeds = confidences > threshold  # (tokens, depths)
    exits = exceeds.any(axis=1)  # (tokens,)
    agrees_at_first = agrees[np.arange(len(agrees)), exceeds.argmax(axis=1)]  # (tokens,)
    return EarlyExits(float(exits.mean()), float(agrees_at_first[exits].mean()) if exits.any() else None)


def matching_threshold(
    confidences: Float[np.ndarray, "tokens depths"], agrees: Bool[np.ndarray, "tokens depths"], agreement: float
) -> float | None:
    """Finds the lowest threshold in [0, 1] at which the exiting tokens agree at least as often as asked.

    The lowest one lets the most tokens exit. It may be below the threshold at which `agreement` was measured, even
    on the same confidences. Agreement changes only at confidences that occur, so 0 and these are tried.

    Args:
        confidences: in [0, 1], at each candidate depth.
        agrees: whether the token that the depth would produce is the full model's.
        agreement: the share of exiting tokens that must agree, in [0, 1].

    Returns:
        The threshold, or None if none reaches the agreement.
    """
    # A token exits at depth l for every threshold in the interval [max(c_1 .. c_(l-1)), c_l).
    previous_best = np.maximum.accumulate(confidences, axis=1)[:, :-1]  # (tokens, depths - 1)
    previous_best = np.concatenate([np.full((len(confidences), 1), -np.inf), previous_best], axis=1)
    is_exit = confidences > previous_best  # (tokens, depths): whether that interval is not empty
    begins, ends, right = previous_best[is_exit], confidences[is_exit], agrees[is_exit]  # (intervals,)
    thresholds = np.unique(np.append(confidences, 0.0))

    def num_containing(begins: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """For each threshold, how many intervals [begin, end) contain it."""
        begun = np.searchsorted(np.sort(begins), thresholds, side="right")
        return begun - np.searchsorted(np.sort(ends), thresholds, side="right")

    num_exits, num_right = num_containing(begins, ends), num_containing(begins[right], ends[right])
    enough = (num_exits > 0) & (num_right >= agreement * num_exits)
    return float(thresholds[enough.argmax()]) if enough.any() else None
