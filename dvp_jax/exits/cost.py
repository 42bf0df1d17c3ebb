"""FLOPs of confidence: as the paper's code counts them, and those that are really spent."""

from __future__ import annotations

import numpy as np

from dvp_jax.exits.policy import CALM, DVP, HiddenCALM, Static
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.int8 import num_rescored


def paper_confidence_flops(exit_layers: np.ndarray, policy: Static, config: T5Config) -> np.ndarray:
    """The published count, which gives the paper's factor of 7 (DVP).

    Sum over depths l = 0 .. min(exit_layer, L - 1) of (2d - 1)V while l <= prune_layer or without pruning, and of
    (2d - 1)K beyond. It counts depths at which nothing is decided, and leaves out softmax, top-k, the
    gather and the last head: for comparison with published figures only. Methods that ask for no confidence,
    or take it from the hidden state, count 0. K is the number of rows read, which for the rules "mass" and "decay"
    is that of the largest set, since shapes are fixed.

    Args:
        exit_layers: layers run per token, any shape.
        policy: the method.
        config: d_model, vocabulary and depth.

    Returns:
        float64, of the shape of exit_layers.
    """
    if not isinstance(policy, CALM) or isinstance(policy, HiddenCALM):
        return np.zeros(np.shape(exit_layers))
    whole = (2 * config.d_model - 1) * config.vocab_size
    if policy.all_or_none:
        return np.full(np.shape(exit_layers), float(whole))  # asks once
    depths = np.minimum(exit_layers, config.num_decoder_layers - 1) + 1.0
    if not isinstance(policy, DVP):
        return depths * whole
    unpruned = np.minimum(depths, policy.prune_layer + 1)
    return unpruned * whole + (depths - unpruned) * (2 * config.d_model - 1) * policy.rows


def unembedding_flops(exit_layers: np.ndarray, policy: Static, config: T5Config) -> np.ndarray:
    """FLOPs of the unembedding products that decoding a token takes: 2dV or 2dK for each one computed.

    K is the number of rows read, masked ones included. The oracle counts as if it knew where to leave.

    Args:
        exit_layers: layers run per token, any shape.
        policy: the method.
        config: d_model, vocabulary and depth.

    Returns:
        float64, of the shape of exit_layers. The product that reads the token is included.
    """
    whole, kept = vocabulary_reads(exit_layers, policy)
    rows = policy.rows if isinstance(policy, DVP) else 0
    return 2.0 * config.d_model * (whole * config.vocab_size + kept * rows)


def vocabulary_reads(exit_layers: np.ndarray, policy: Static) -> tuple[np.ndarray, np.ndarray]:
    """How often decoding a token reads the whole vocabulary, and how often the kept rows.

    Args:
        exit_layers: layers run per token, any shape.
        policy: the method.

    Returns:
        float64, two arrays of the shape of exit_layers. The reading that gives the token is included.
    """
    exit_layers = np.asarray(exit_layers, np.float64)
    if not isinstance(policy, CALM) or isinstance(policy, HiddenCALM):
        # Of a batch of one: a row also pays where another leaves.
        return np.ones_like(exit_layers), np.zeros_like(exit_layers)
    # Candidate depths asked: first_exit .. exit_layer, but never the last depth, which is only read.
    reaches_last = exit_layers >= policy.last_depth
    last_asked = policy.first_exit if policy.all_or_none else policy.last_depth - 1
    asked = np.minimum(exit_layers, last_asked) - policy.first_exit + 1
    if not isinstance(policy, DVP):
        return asked + reaches_last, np.zeros_like(exit_layers)
    # The reading at p is also the first candidate's where both depths are the same.
    kept = np.maximum(asked - (policy.prune_layer == policy.first_exit), 0)
    if policy.final_vocab == "full":
        return 1.0 + reaches_last, kept
    return np.ones_like(exit_layers), kept + reaches_last


def decoder_layer_flops(
    exit_layers: np.ndarray, policy: Static, config: T5Config, source_length: int | np.ndarray
) -> np.ndarray:
    """FLOPs of the decoder layers of a token, apart from self-attention over the tokens before it.

    The layers it ran, and for each that it skipped its two key/value projections (state propagation); nothing for
    layers that no token runs, and where whole layers wait (shallow-deep) all of them, those that a text's last
    tokens no longer wait for included.

    Args:
        exit_layers: layers run per token, any shape.
        policy: the method.
        config: the shape.
        source_length: tokens that cross-attention reads, of all or of each token.
    """
    d, inner = config.d_model, config.num_heads * config.d_kv
    key_value = 4.0 * d * inner
    feed_forward = (6.0 if config.gated else 4.0) * d * config.d_ff
    # Self-attention q, o; cross-attention q, o and its two products with keys and values.
    layer = key_value + 4.0 * d * inner + 4.0 * d * inner + 4.0 * inner * source_length + feed_forward
    owed = layer if policy.all_or_none else key_value
    return exit_layers * layer + (policy.last_depth - exit_layers) * owed


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
