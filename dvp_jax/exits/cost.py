"""What decoding a token costs, from what its policy reads: FLOPs, and bytes that must be read."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from dvp_jax.exits.policy import ExitPolicy
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.int8 import num_rescored


def paper_confidence_flops(
    exit_layers: Int[np.ndarray, "*shape"], policy: ExitPolicy, config: T5Config
) -> Float[np.ndarray, "*shape"]:
    """FLOPs of confidence as the paper's code counts them, which gives its factor of 7 (DVP, results).

    The sum over depths l = 0 .. min(exit_layer, L - 1) of (2d - 1)V while l <= prune_layer or without pruning, and
    of (2d - 1)K beyond. It counts depths at which nothing is decided, and leaves out softmax, top-k, the gather
    and the last head: use it beside published figures only. Methods that ask for no confidence, or take it from
    the hidden state, count 0. K is the number of rows read; with the rules "mass" and "decay" that is the size of
    the largest set, since shapes are fixed.

    Args:
        exit_layers: layers run per token.
        policy: the method.
        config: gives d_model, vocabulary and depth.

    Returns:
        float64.
    """
    reads = policy.paper_reads(exit_layers)
    return (2.0 * config.d_model - 1.0) * (reads.full * config.vocab_size + reads.kept * policy.kept_rows)


def unembedding_flops(
    exit_layers: Int[np.ndarray, "*shape"], policy: ExitPolicy, config: T5Config
) -> Float[np.ndarray, "*shape"]:
    """FLOPs of the unembedding products that decoding a token takes: 2dV or 2dK for each.

    K is the number of rows read, masked ones included. The product that reads the token's id is included. The
    oracle counts as if it knew where to exit.

    Args:
        exit_layers: layers run per token.
        policy: the method.
        config: gives d_model and vocabulary.

    Returns:
        float64.
    """
    reads = policy.reads(exit_layers)
    return 2.0 * config.d_model * (reads.full * config.vocab_size + reads.kept * policy.kept_rows)


def decoder_layer_flops(
    exit_layers: Int[np.ndarray, "*shape"],
    policy: ExitPolicy,
    config: T5Config,
    source_length: int | Int[np.ndarray, "*shape"],
) -> Float[np.ndarray, "*shape"]:
    """FLOPs of the decoder layers of a token, without self-attention over the tokens before it.

    Counted are the layers that ran and, for each layer that the token skipped, two key/value projections (state
    propagation). Where skipped layers run later (shallow-deep) they count whole, also for the last tokens of a
    text, whose skipped layers are never needed. Layers that no token runs count nothing.

    Args:
        exit_layers: layers run per token.
        policy: the method.
        config: the shape of the model.
        source_length: tokens that cross-attention reads, one number or one for each token.

    Returns:
        float64.
    """
    d, inner = config.d_model, config.num_heads * config.d_kv
    key_value = 4.0 * d * inner
    feed_forward = (6.0 if config.gated else 4.0) * d * config.d_ff
    # Self-attention q, o; cross-attention q, o and its two products with keys and values.
    layer = key_value + 4.0 * d * inner + 4.0 * d * inner + 4.0 * inner * source_length + feed_forward
    skipped = layer if policy.runs_skipped_layers_later else key_value
    return exit_layers * layer + (policy.last_depth - exit_layers) * skipped


def bytes_per_token(
    exit_layers: Int[np.ndarray, "*shape"],
    policy: ExitPolicy,
    config: T5Config,
    *,
    source_length: int,
    new_tokens: int,
    batch: int = 1,
    itemsize: int = 4,
    int8_unembedding: bool = False,
) -> Float[np.ndarray, "*shape"]:
    """Bytes that a decode step must read, each once: weights, caches and rows of the unembedding.

    They bound the time of a step at small batches. Writes, activations, norms and biases are left out: all are
    small beside the weights. Of a pruned vocabulary every gathered row is read, masked ones included.

    Args:
        exit_layers: layers run in each step; all rows of a batch exit together.
        policy: the method.
        config: the shape of the model.
        source_length: tokens that cross-attention reads.
        new_tokens: length of the output; the self-attention cache holds half of it on average.
        batch: rows; weights are read once for all of them.
        itemsize: bytes of a weight and of a cached number.
        int8_unembedding: the full vocabulary is read from its int8 copy.

    Returns:
        float64.
    """
    exit_layers = np.asarray(exit_layers, np.float64)
    d, inner = config.d_model, config.num_heads * config.d_kv
    key_value = 2.0 * d * inner
    # Self-attention q, k, v, o; cross-attention q, o; feed-forward.
    layer = key_value + 4.0 * d * inner + (3.0 if config.gated else 2.0) * d * config.d_ff
    cached = 2.0 * inner * (source_length + new_tokens / 2) * batch
    skipped = layer + cached if policy.runs_skipped_layers_later else key_value
    # A skipped layer reads its weights once for all tokens that wait.
    numbers = exit_layers * (layer + cached) + (policy.last_depth - exit_layers) * skipped / policy.window

    def full_read(num_exact: int, int8: bool = int8_unembedding) -> float:
        if not int8:
            return config.vocab_size * d * itemsize
        rescored = min(num_rescored(num_exact), config.vocab_size) * batch
        return config.vocab_size * d + rescored * d * itemsize

    reads = policy.reads(exit_layers)
    kept = reads.kept * float(policy.kept_rows * d * batch * itemsize)
    # So is the vocabulary for all drafts that wait, without the copy where there are several.
    drafts = (exit_layers < policy.last_depth) * float(policy.verifies)
    verified = drafts * full_read(1, int8_unembedding and policy.window == 1) / policy.window
    return (
        numbers * itemsize
        + full_read(policy.num_exact)
        + (reads.full - 1 - drafts) * full_read(1)
        + verified
        + kept
    )
