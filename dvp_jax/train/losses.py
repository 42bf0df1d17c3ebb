"""Losses over depths, with which every depth learns to predict the next token.

One forward pass gives the hidden states h_l of all depths. The logits of depth l are the same as in decoding,
z_l = W (s * norm(h_l)). A scan over depths with rematerialisation keeps the logits of only one depth in memory, in
the forward and in the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.t5.layers import linear

LOSSES = ("final", "weighted", "uniform", "geometric", "layers")


@struct.dataclass
class DepthSums:
    """Sums over the tokens of a batch."""

    loss: Float[Array, " depths"]
    correct: Float[Array, " depths"]  # number of tokens whose target has the largest logit
    tokens: Float[Array, ""]


def depth_weights(
    loss: str, num_layers: int, *, layers: Sequence[int] = (), ratio: float = 0.8
) -> dict[int, float]:
    """Returns the weight w_l of each depth that the loss weighs. The weights sum to 1.

    Args:
        loss: one of

            - "final": only the last depth, which is plain fine-tuning.
            - "weighted": w_l proportional to l (CALM, arXiv 2207.07061, section 3).
            - "uniform": the same weight for all depths.
            - "geometric": w_l proportional to ratio ** (L - l).
            - "layers": the same weight for the chosen depths (LITE, arXiv 2310.18581).
        num_layers: L, the number of decoder layers.
        layers: the depths of "layers".
        ratio: the ratio of "geometric", in (0, 1].

    Raises:
        ValueError: an unknown loss, depths that the decoder does not have, or an impossible ratio.
    """
    if loss not in LOSSES:
        raise ValueError(f"loss is {loss!r}; allowed: {', '.join(LOSSES)}")
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"ratio is {ratio!r}; allowed: above 0, at most 1")
    depths = range(1, num_layers + 1)
    if loss == "layers" and (not layers or not set(layers) <= set(depths)):
        raise ValueError(f"layers is {list(layers)}; allowed: at least one depth from 1 to {num_layers}")
    weights = {
        "final": {num_layers: 1.0},
        "weighted": {depth: float(depth) for depth in depths},
        "uniform": {depth: 1.0 for depth in depths},
        "geometric": {depth: ratio ** (num_layers - depth) for depth in depths},
        "layers": {depth: 1.0 for depth in sorted(set(layers))},
    }[loss]
    total = sum(weights.values())
    return {depth: weight / total for depth, weight in weights.items()}


def cross_entropy(
    logits: Float[Array, "batch target vocab"], targets: Int[Array, "batch target"], label_smoothing: float = 0.0
) -> Float[Array, "batch target"]:
    """Returns the cross-entropy of each token.

    The expected distribution gives the target 1 - label_smoothing, and divides the rest evenly over all tokens.
    """
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    expected = (1.0 - label_smoothing) * target
    if label_smoothing:
        expected += label_smoothing * jnp.mean(logits, axis=-1)
    return jax.nn.logsumexp(logits, axis=-1) - expected


def sums_by_depth(
    readouts: Float[Array, "depths batch target d_model"],
    unembedding: Float[Array, "vocab d_model"],
    targets: Int[Array, "batch target"],
    mask: Bool[Array, "batch target"],
    label_smoothing: float = 0.0,
) -> DepthSums:
    """Sums cross-entropy and correct tokens at each depth.

    Args:
        readouts: s * norm(h_l) for each depth.
        unembedding: W.
        targets: the tokens to predict.
        mask: False for padding.
        label_smoothing: the smoothing of the cross-entropy, in [0, 1).
    """

    @jax.checkpoint
    def sums_of_depth(readout: Array) -> tuple[Array, Array]:
        logits = linear(readout, unembedding)  # [batch, target, vocab]
        losses = cross_entropy(logits, targets, label_smoothing)  # [batch, target]
        # Cheaper than an argmax. A tie counts as correct.
        correct = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] >= jnp.max(logits, axis=-1)
        return jnp.sum(losses * mask), jnp.sum(correct & mask).astype(jnp.float32)

    _, (loss, correct) = lax.scan(lambda carry, readout: (carry, sums_of_depth(readout)), None, readouts)
    return DepthSums(loss, correct, jnp.sum(mask).astype(jnp.float32))
