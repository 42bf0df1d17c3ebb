"""Losses over depths: every depth learns to predict the token, from one forward pass.

The logits of depth l are read exactly as decoding reads them, z_l = W (s * norm(h_l)). A scan over depths with
rematerialisation holds the logits of one depth at a time, forward and backward.
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
    """Sums over the tokens of a batch, one for each depth."""

    loss: Float[Array, " depths"]
    correct: Float[Array, " depths"]  # tokens whose argmax is the target
    tokens: Float[Array, ""]


def depth_weights(
    loss: str, num_layers: int, *, layers: Sequence[int] = (), ratio: float = 0.8
) -> dict[int, float]:
    """The weight of each depth that has one; they sum to 1.

    Args:
        loss: "final" is plain fine-tuning; "weighted" CALM's anytime loss, w_l proportional to l; "uniform" all
            depths alike; "geometric" w_l proportional to ratio ** (L - l); "layers" the chosen depths alike
            (LITE).
        num_layers: L, the decoder's.
        layers: the depths of "layers".
        ratio: of "geometric", in (0, 1].

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
    """Cross-entropy against the target with probability 1 - label_smoothing, and the rest over all tokens."""
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
    """Cross-entropy and correct tokens of each depth.

    Args:
        readouts: s * norm(h_l) of the depths.
        unembedding: W.
        targets: the tokens to predict.
        mask: False where there is none.
        label_smoothing: of the cross-entropy.
    """

    @jax.checkpoint
    def of_depth(readout: Array) -> tuple[Array, Array]:
        logits = linear(readout, unembedding)
        losses = cross_entropy(logits, targets, label_smoothing)
        # Cheaper than argmax; a tie counts as correct.
        correct = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0] >= jnp.max(logits, axis=-1)
        return jnp.sum(losses * mask), jnp.sum(correct & mask).astype(jnp.float32)

    _, (loss, correct) = lax.scan(lambda carry, readout: (carry, of_depth(readout)), None, readouts)
    return DepthSums(loss, correct, jnp.sum(mask).astype(jnp.float32))
