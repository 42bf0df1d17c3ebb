"""Confidence measures: how sure a depth is of its token.

A measure of logits maps them, over the whole vocabulary or over the kept rows, and their two best candidates to
one number per row. A measure of the hidden state needs no vocabulary at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from dvp_jax.t5.meta import MetaClassifier


class Best(NamedTuple):
    """The two best candidates of each row: all that a token and its softmax confidence need, with a sum."""

    candidate: Int[Array, " batch"]  # of the best; of equal ones the smallest
    logit: Float[Array, " batch"]
    second: Float[Array, " batch"]  # logit of the second best; -inf where there is one candidate only


def top_k(values: Float[Array, "batch size"], k: int) -> tuple[Float[Array, "batch k"], Int[Array, "batch k"]]:
    """`lax.top_k`: the k largest of each row, descending, and where they stand; of equal ones the first."""
    # Behind a barrier, since XLA turns a top-k whose columns are sliced apart into a sort of the whole row, a
    # hundred times slower.
    values, indices = lax.optimization_barrier(lax.top_k(values, k))
    return values, indices


def best_two(logits: Float[Array, "batch size"]) -> Best:
    """The two best candidates of each row."""
    if logits.shape[-1] == 1:
        first = logits[:, 0]
        return Best(jnp.zeros(first.shape, jnp.int32), first, jnp.full_like(first, -jnp.inf))
    values, indices = top_k(logits, 2)  # on CPU a third of argmax's time
    return Best(indices[:, 0], values[:, 0], values[:, 1])


def softmax_diff(logits: Float[Array, "batch size"], best: Best) -> Float[Array, " batch"]:
    """Probability of the best candidate minus that of the second best (CALM).

    Args:
        logits: float32, of the whole vocabulary or of the kept rows.
        best: the two best of them. With one candidate the probability of the second is 0.

    Returns:
        float32 in [0, 1].
    """
    partition = jnp.sum(jnp.exp(logits - best.logit[:, None]), axis=-1)  # relative to the best
    return (1.0 - jnp.exp(best.second - best.logit)) / partition


def meta(normed: Float[Array, "batch d_model"], classifier: MetaClassifier) -> Float[Array, " batch"]:
    """The meta classifier's probability that depth l agrees with the last one (CALM).

    Args:
        normed: norm(h_l), float32.
        classifier: trained on the frozen model.

    Returns:
        float32 in [0, 1].
    """
    return jax.nn.sigmoid(classifier.logit(normed))


LogitMeasure = Callable[[Float[Array, "batch size"], Best], Float[Array, " batch"]]
HiddenMeasure = Callable[[Float[Array, "batch d_model"], MetaClassifier], Float[Array, " batch"]]

LOGIT_MEASURES: dict[str, LogitMeasure] = {"softmax_diff": softmax_diff}
HIDDEN_MEASURES: dict[str, HiddenMeasure] = {"meta": meta}
