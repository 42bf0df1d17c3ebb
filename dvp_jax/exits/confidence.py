"""Confidence measures: how sure a depth is of its token.

A measure of logits maps them, over the whole vocabulary or over the kept rows, and their two best candidates to
one number per row in [0, 1]. A measure of the hidden state needs no vocabulary at all. None ever exceeds 1, by
rounding either: a threshold of 1 must never let a token leave.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dvp_jax.t5.exit_classifier import MetaClassifier
from dvp_jax.t5.top_k import top_k


class Best(NamedTuple):
    """The two best candidates of each row: all that a token and its softmax confidence need, with a sum."""

    candidate: Int[Array, " batch"]  # of the best; of equal ones the smallest
    logit: Float[Array, " batch"]
    second: Float[Array, " batch"]  # logit of the second best; -inf where there is one candidate only


def best_two(logits: Float[Array, "batch size"], *, whole: bool = False) -> Best:
    """The two best candidates of each row, of the whole vocabulary or of a part."""
    if logits.shape[-1] == 1:
        first = logits[:, 0]
        return Best(jnp.zeros(first.shape, jnp.int32), first, jnp.full_like(first, -jnp.inf))
    values, indices = top_k(logits, 2, whole=whole)  # on CPU a third of argmax's time
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


def softmax_max(logits: Float[Array, "batch size"], best: Best) -> Float[Array, " batch"]:
    """Probability of the best candidate: the baseline of Hendrycks and Gimpel (arXiv 1610.02136); not in CALM.

    Args:
        logits: float32, of the whole vocabulary or of the kept rows.
        best: the two best of them.

    Returns:
        float32 in (0, 1].
    """
    return 1.0 / jnp.sum(jnp.exp(logits - best.logit[:, None]), axis=-1)


def entropy(logits: Float[Array, "batch size"], best: Best) -> Float[Array, " batch"]:
    """1 - H(p) / log(size): 1 where all probability is on one candidate, 0 where all are equally likely.

    BranchyNet (arXiv 1709.01686) leaves where the entropy itself is below a threshold; not in CALM.

    Args:
        logits: float32, of the whole vocabulary or of the kept rows. The size is that of the set: a candidate
            whose logit is -inf is not in it.
        best: the two best of them.

    Returns:
        float32 in [0, 1]; 1 where there is one candidate only, as certain as by the other measures.
    """
    below = logits - best.logit[:, None]
    weights = jnp.exp(below)
    partition = jnp.sum(weights, axis=-1)
    # H = log(partition) - sum(p * below), both terms of which are at least 0; 0 * -inf would be NaN.
    mean = jnp.sum(jnp.where(weights > 0.0, weights * below, 0.0), axis=-1) / partition
    size = jnp.sum(logits > -jnp.inf, axis=-1)
    return jnp.maximum(1.0 - (jnp.log(partition) - mean) / jnp.log(jnp.maximum(size, 2)), 0.0)


class States(NamedTuple):
    """What a measure of the hidden state may read."""

    hidden: Float[Array, "batch d_model"]  # h_l
    before: Float[Array, "batch d_model"] | None  # h_(l-1), for a measure in `MEASURES_OF_CHANGE`
    normed: Float[Array, "batch d_model"]  # norm(h_l), float32
    classifier: MetaClassifier | None  # for a measure in `MEASURES_BY_CLASSIFIER`


def state(states: States) -> Float[Array, " batch"]:
    """Cosine of h_l and h_(l-1): how little the last layer changed (CALM, hidden-state saturation).

    Returns:
        float32 in [0, 1]; a negative cosine counts as 0.
    """
    assert states.before is not None
    hidden, before = states.hidden, states.before
    norms = jnp.linalg.norm(hidden, axis=-1) * jnp.linalg.norm(before, axis=-1)
    return jnp.clip(jnp.sum(hidden * before, axis=-1) / jnp.maximum(norms, 1e-30), 0.0, 1.0)


def meta(states: States) -> Float[Array, " batch"]:
    """The meta classifier's probability that depth l agrees with the last one (CALM).

    Returns:
        float32 in [0, 1].
    """
    assert states.classifier is not None
    return jax.nn.sigmoid(states.classifier.logit(states.normed))


LogitMeasure = Callable[[Float[Array, "batch size"], Best], Float[Array, " batch"]]
HiddenMeasure = Callable[[States], Float[Array, " batch"]]

LOGIT_MEASURES: dict[str, LogitMeasure] = {
    "softmax_diff": softmax_diff,
    "softmax_max": softmax_max,
    "entropy": entropy,
}
HIDDEN_MEASURES: dict[str, HiddenMeasure] = {"state": state, "meta": meta}
MEASURES_OF_CHANGE = ("state",)
MEASURES_BY_CLASSIFIER = ("meta",)
