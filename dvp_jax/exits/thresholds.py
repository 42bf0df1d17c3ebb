"""Threshold rules: what a confidence must exceed, for each generated token and depth.

Thresholds are data: the decode function takes an array, so that changing them never recompiles.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

NEVER = np.float32(np.inf)
"""A threshold that no confidence exceeds."""
ALWAYS = np.float32(-np.inf)
"""A threshold that every confidence exceeds."""


def threshold_schedule(
    threshold: float | Sequence[float],
    max_new_tokens: int,
    num_depths: int,
    decay_temperature: float | None = None,
) -> Float[Array, "max_new_tokens num_depths"]:
    """Threshold of each token t = 1.. and depth l = 1.., constant or decaying over the output.

    The decay is that of CALM's published code, 0.9 * threshold + 0.1 * threshold * exp(-temperature * t / N)
    (the text of CALM has no factor `threshold` in the second term).

    Args:
        threshold: in [0, 1], of all depths or of each. At 1 no token ever leaves early: confidences must exceed
            it.
        max_new_tokens: N.
        num_depths: L.
        decay_temperature: None for a constant threshold.
    """
    token = np.arange(1, max_new_tokens + 1)[:, None]
    values = np.broadcast_to(np.asarray(threshold, np.float64), (max_new_tokens, num_depths))
    if decay_temperature is not None:
        values = 0.9 * values + 0.1 * values * np.exp(-decay_temperature * token / max_new_tokens)
    return jnp.asarray(values, jnp.float32)
