"""Confidence measures: how sure a depth is of its token, from its candidate logits.

A measure maps logits, over the whole vocabulary or over the kept rows, to one number per row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Best(NamedTuple):
    """What a softmax measure reads from logits, in one place: no sort of the vocabulary."""

    index: Int[Array, " batch"]
    logit: Float[Array, " batch"]
    second: Float[Array, " batch"]  # -inf where there is one candidate only


def best_two(logits: Float[Array, "batch size"]) -> Best:
    """The best candidate (ties: the smaller index) and the logit of the second best."""
    index = jnp.argmax(logits, axis=-1)
    others = jnp.where(jnp.arange(logits.shape[-1]) == index[:, None], -jnp.inf, logits)
    return Best(index, jnp.max(logits, axis=-1), jnp.max(others, axis=-1))


def softmax_diff(logits: Float[Array, "batch size"]) -> Float[Array, " batch"]:
    """Probability of the best candidate minus that of the second best (CALM, section 3.5).

    Args:
        logits: float32, of the whole vocabulary or of the kept rows. With one candidate the second is 0.

    Returns:
        float32 in [0, 1].
    """
    best = best_two(logits)
    partition = jnp.sum(jnp.exp(logits - best.logit[:, None]), axis=-1)  # relative to the best
    return (1.0 - jnp.exp(best.second - best.logit)) / partition


CONFIDENCE_MEASURES: dict[str, Callable[[Float[Array, "batch size"]], Float[Array, " batch"]]] = {
    "softmax_diff": softmax_diff,
}
