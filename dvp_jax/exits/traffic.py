"""Bytes that decoding a token must read: the bound of its time at small batches."""

from __future__ import annotations

import numpy as np

from dvp_jax.exits.flops import vocabulary_reads
from dvp_jax.exits.policy import DVP, Static
from dvp_jax.exits.screen import num_rescored
from dvp_jax.t5.config import T5Config


def bytes_per_token(
    exit_layers: np.ndarray,
    policy: Static,
    config: T5Config,
    *,
    source_length: int,
    new_tokens: int,
    batch: int = 1,
    itemsize: int = 4,
    screened: bool = False,
    window: int = 1,
) -> np.ndarray:
    """Bytes that a decode step must read, each once: weights, caches, and rows of the unembedding.

    Writes, activations and what norms and biases hold are left out: all are small beside the weights. Of a pruned
    vocabulary every gathered row is read, masked ones included.

    Args:
        exit_layers: layers run in each step, any shape; all rows of a batch leave together.
        policy: the method.
        config: the shape.
        source_length: tokens that cross-attention reads.
        new_tokens: length of the output, of which the self-attention cache holds half on average.
        batch: rows; weights are read once for all of them.
        itemsize: bytes of a weight and of a cached number.
        screened: the whole vocabulary is read from its int8 copy.
        window: tokens that wait for a skipped layer before it reads its weights for all of them together.

    Returns:
        float64, of the shape of exit_layers.
    """
    exit_layers = np.asarray(exit_layers, np.float64)
    d, inner = config.d_model, config.num_heads * config.d_kv
    key_value = 2.0 * d * inner
    # Self-attention q, k, v, o; cross-attention q, o; feed-forward.
    layer = key_value + 4.0 * d * inner + (3.0 if config.gated else 2.0) * d * config.d_ff
    cached = 2.0 * inner * (source_length + new_tokens / 2) * batch
    skipped = policy.last_depth - exit_layers
    owed = layer + cached if policy.all_or_none else key_value  # by a layer to a token that it skipped
    numbers = exit_layers * (layer + cached) + skipped * owed / window

    def whole(sure: int) -> float:
        rescored = min(num_rescored(sure), config.vocab_size) * batch
        return config.vocab_size * d + rescored * d * itemsize if screened else config.vocab_size * d * itemsize

    reads, kept = vocabulary_reads(exit_layers, policy)
    rows = policy.rows if isinstance(policy, DVP) else 0
    read = whole(policy.sure) + (reads - 1) * whole(1) + kept * float(rows * d * batch * itemsize)
    return numbers * itemsize + read
