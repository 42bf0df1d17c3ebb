"""Threshold schedules: what a confidence must exceed, for each generated token and depth.

Thresholds are data: the decode function takes an array, so changing them never recompiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

NEVER = 1.0
"""A threshold that no confidence exceeds: every measure is at most 1."""
ALWAYS = -np.inf
"""A threshold that every confidence exceeds."""


def threshold_schedule(
    threshold: float | Sequence[float],
    max_new_tokens: int,
    num_depths: int,
    decay_temperature: float | None = None,
) -> Float[np.ndarray, "max_new_tokens num_depths"]:
    """The threshold of each token t = 1, 2, ... and depth l = 1, 2, ...: constant, or decaying over the output.

    The decay is that of CALM's published code (T5X, contrib/calm):

        threshold_t = 0.9 * threshold + 0.1 * threshold * exp(-temperature * t / N)

    The paper's text (arXiv 2207.07061) has no factor `threshold` in the second term.

    Args:
        threshold: in [0, 1], one for all depths or one for each. At 1 no token exits early, since confidence must
            exceed it.
        max_new_tokens: N.
        num_depths: L.
        decay_temperature: None for a constant threshold.

    Returns:
        float32 of shape (N, L).
    """
    token = np.arange(1, max_new_tokens + 1)[:, None]
    values = np.broadcast_to(np.asarray(threshold, np.float64), (max_new_tokens, num_depths))
    if decay_temperature is not None:
        values = 0.9 * values + 0.1 * values * np.exp(-decay_temperature * token / max_new_tokens)
    return np.asarray(values, np.float32)
