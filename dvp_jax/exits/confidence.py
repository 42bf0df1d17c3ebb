"""Confidence measures: how sure a depth is of its token.

A measure of logits maps the logits of the full vocabulary, or of the kept rows, to one number per row. A measure
of the hidden state needs no vocabulary. Every measure is in [0, 1] and never exceeds 1, not even by rounding: at a
threshold of 1 no token may exit early.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from dvp_jax.t5.backend import backend
from dvp_jax.t5.exit_classifier import ExitClassifier
from dvp_jax.t5.top_k import top_k


class Best(NamedTuple):
    """The two best candidates of each row."""

    candidate: Int[Array, " batch"]  # index of the best; of equal logits the smaller index
    logit: Float[Array, " batch"]  # of the best
    second: Float[Array, " batch"]  # logit of the second best; -inf where there is only one candidate
    partition: Float[Array, " batch"]  # sum of exp(logit - best logit) over all candidates, at least 1


def best_two(logits: Float[Array, "batch size"], *, full_vocabulary: bool = False) -> Best:
    """The two best candidates of each row.

    Args:
        logits: float32.
        full_vocabulary: whether they are those of the full vocabulary, which a mesh divides.
    """
    if logits.shape[-1] == 1:
        first = logits[:, 0]
        return Best(jnp.zeros(first.shape, jnp.int32), first, jnp.full_like(first, -jnp.inf), jnp.ones_like(first))
    if backend() != "cpu" and jax.sharding.get_abstract_mesh().empty:
        return _best_two_in_one_pass(logits)
    # On CPU this takes a third of the time of an argmax and a masked maximum.
    values, indices = top_k(logits, 2, full_vocabulary=full_vocabulary)
    partition = jnp.sum(jnp.exp(logits - values[:, :1]), axis=-1)
    # XLA may compute the logits once for the maximum and again for the sum, rounded otherwise: the best candidate
    # would then not count 1, and a confidence could exceed 1.
    return Best(indices[:, 0], values[:, 0], values[:, 1], jnp.maximum(partition, 1.0))


def _best_two_in_one_pass(logits: Float[Array, "batch size"]) -> Best:
    """One reduction with several results, for devices where every kernel counts: 4 kernels a question fewer on a
    GPU."""

    def merge(one: tuple[Array, ...], other: tuple[Array, ...]) -> tuple[Array, ...]:
        (best, index, second, partition), (best_, index_, second_, partition_) = one, other
        is_first = (best > best_) | ((best == best_) & (index < index_))
        most = jnp.maximum(best, best_)
        return (
            most,
            jnp.where(is_first, index, index_),
            jnp.maximum(jnp.minimum(best, best_), jnp.maximum(second, second_)),
            # Where a logit is the maximum its weight is 1, also if both are -inf.
            partition * jnp.where(best == most, 1.0, jnp.exp(best - most))
            + partition_ * jnp.where(best_ == most, 1.0, jnp.exp(best_ - most)),
        )

    operands = (
        logits,
        lax.broadcasted_iota(jnp.int32, logits.shape, 1),
        jnp.full_like(logits, -jnp.inf),
        jnp.where(logits > -jnp.inf, 1.0, 0.0),
    )
    nothing = (jnp.float32(-jnp.inf), jnp.int32(logits.shape[1]), jnp.float32(-jnp.inf), jnp.float32(0.0))
    best, index, second, partition = lax.reduce(operands, nothing, merge, (1,))
    index = jnp.minimum(index, logits.shape[1] - 1)  # of NaN, which is larger than nothing
    return Best(index, best, second, jnp.maximum(partition, 1.0))


def softmax_diff(logits: Float[Array, "batch size"], best: Best) -> Float[Array, " batch"]:
    """Probability of the best candidate minus that of the second best (CALM, section 3; the measure of DVP).

    With one candidate the second probability is 0.

    Args:
        logits: float32, of the full vocabulary or of the kept rows.
        best: the two best of them.

    Returns:
        float32 in [0, 1].
    """
    return (1.0 - jnp.exp(best.second - best.logit)) / best.partition


def softmax_max(logits: Float[Array, "batch size"], best: Best) -> Float[Array, " batch"]:
    """Probability of the best candidate: the baseline of Hendrycks and Gimpel (arXiv 1610.02136); not in CALM.

    Args:
        logits: float32, of the full vocabulary or of the kept rows.
        best: the two best of them.

    Returns:
        float32 in (0, 1].
    """
    return 1.0 / best.partition


def entropy(logits: Float[Array, "batch size"], best: Best) -> Float[Array, " batch"]:
    """1 - H(p) / log(size): 1 where one candidate has all probability, 0 where all are equally likely.

    BranchyNet (arXiv 1709.01686) exits where the entropy itself is below a threshold; not in CALM.

    Args:
        logits: float32, of the full vocabulary or of the kept rows. `size` counts the candidates whose logit is
            not -inf.
        best: the two best of them.

    Returns:
        float32 in [0, 1]; 1 where there is one candidate only, as with the other measures.
    """
    below = logits - best.logit[:, None]
    weights = jnp.exp(below)
    # H = log(partition) - sum(p * below); both terms are at least 0. The mask avoids 0 * -inf = NaN.
    mean = jnp.sum(jnp.where(weights > 0.0, weights * below, 0.0), axis=-1) / best.partition
    size = jnp.sum(logits > -jnp.inf, axis=-1)
    return jnp.clip(1.0 - (jnp.log(best.partition) - mean) / jnp.log(jnp.maximum(size, 2)), 0.0, 1.0)


class States(NamedTuple):
    """What a measure of the hidden state may read."""

    hidden: Float[Array, "batch d_model"]  # h_l
    previous: Float[Array, "batch d_model"] | None  # h_(l-1), for a measure in `MEASURES_OF_CHANGE`
    normed: Float[Array, "batch d_model"]  # norm(h_l), float32
    classifier: ExitClassifier | None  # for a measure in `MEASURES_BY_CLASSIFIER`


def state(states: States) -> Float[Array, " batch"]:
    """Cosine of h_l and h_(l-1): how little the last layer changed the state (CALM, hidden-state saturation).

    Returns:
        float32 in [0, 1]; a negative cosine counts as 0.
    """
    assert states.previous is not None
    hidden, previous = states.hidden, states.previous
    norms = jnp.linalg.norm(hidden, axis=-1) * jnp.linalg.norm(previous, axis=-1)
    return jnp.clip(jnp.sum(hidden * previous, axis=-1) / jnp.maximum(norms, 1e-30), 0.0, 1.0)


def meta(states: States) -> Float[Array, " batch"]:
    """The exit classifier's probability that depth l agrees with the last one (CALM, early-exit classifier).

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
"""Measures that compare h_l with h_(l-1)."""
MEASURES_BY_CLASSIFIER = ("meta",)
"""Measures that need a model with an exit classifier."""
