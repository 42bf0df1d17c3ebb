"""One token of every row by the oracle, which knows what the full model would say: for analysis, not for speed."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.decode.cache import CachedDecoder, DecodeProgram, Encoded, KVCache
from dvp_jax.decode.layer_loop import DepthState
from dvp_jax.decode.step import full_vocabulary
from dvp_jax.exits.policy import Heads, LayerOutput, Oracle
from dvp_jax.exits.thresholds import ALWAYS
from dvp_jax.t5.model import Params, embed


def decode_oracle_token(
    structure: DecodeProgram,
    params: Params,
    encoded: Encoded,
    memory: KVCache,
    token: Int[Array, " batch"],
    ended: Bool[Array, " batch"],
    thresholds: Float[Array, "max_new_tokens num_depths"],
) -> tuple[DepthState, KVCache]:
    """`decode_token` of the `Oracle`: runs all layers, and then looks for the first that said the same.

    Args and returns as of `decode_token`; what a confidence exceeds does not matter.
    """
    config, policy = structure.config, structure.policy
    assert isinstance(policy, Oracle)
    layers = CachedDecoder(structure, params, encoded, memory)
    readers = Heads(full_vocabulary(config, params), params.get("meta"))
    states = [embed(params["shared"], token[:, None])[:, 0]]  # h_0, h_1, ...
    blocks, readings = [], []
    for depth in range(1, policy.last_depth + 1):
        hidden, block = layers.run(depth, states[-1])
        states.append(hidden)
        blocks.append(block)
        if depth >= policy.first_exit:
            readings.append(
                policy.decide(LayerOutput(depth, hidden, states[-2], ~ended), jnp.asarray(ALWAYS), readers)
            )

    tokens = jnp.stack([reading.token for reading in readings])
    first = jnp.argmax(tokens == tokens[-1], axis=0)
    rows = jnp.arange(len(token))
    confidence = jnp.stack([reading.confidence for reading in readings])[first, rows]
    exit_layer = policy.first_exit + first
    left_with = jnp.stack(states)[exit_layer, rows]
    if policy.states == "own":
        blocks = [
            layers.with_this(depth, jnp.where((exit_layer < depth)[:, None], left_with, states[depth - 1]))
            for depth in range(1, policy.last_depth + 1)
        ]
    state = DepthState(
        hidden=left_with,
        exited=jnp.ones_like(ended),
        exit_layer=jnp.where(ended, 0, exit_layer),
        token=jnp.where(ended, config.pad_token_id, tokens[-1]),
        confidence=jnp.where(ended, 0.0, confidence),
        before=None,
        kept=None,
    )
    return state, layers.remember(left_with, policy.last_depth, blocks)
