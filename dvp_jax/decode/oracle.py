"""One token of every row by the oracle, which knows the full model's token: for analysis, not for speed."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from dvp_jax.decode.cache import CachedDecoder, KVCache
from dvp_jax.decode.layer_loop import DepthState
from dvp_jax.decode.program import DecodeInputs, DecodeProgram, heads_at
from dvp_jax.exits.policy import LayerOutput
from dvp_jax.exits.thresholds import ALWAYS
from dvp_jax.t5.model import embed


def decode_oracle_token(
    program: DecodeProgram,
    inputs: DecodeInputs,
    cache: KVCache,
    text: Int[Array, "batch max_new_tokens"],
    token: Int[Array, " batch"],
    ended: Bool[Array, " batch"],
) -> tuple[DepthState, KVCache]:
    """Runs all layers, then exits at the first depth that reads the same token as the last one.

    Args and Returns as `decode_token`. The thresholds do not matter.
    """
    config, policy = program.config, program.policy
    decoder = CachedDecoder(program, inputs, cache)
    heads = heads_at(program, inputs, text, cache.lengths[:, None])
    candidates = [*policy.candidates, policy.last_depth]
    states = [embed(inputs.params["shared"], token[:, None])[:, 0]]  # h_0, h_1, ...: (batch, d_model) each
    blocks, decisions = [], []
    for depth in range(1, policy.last_depth + 1):
        hidden, block = decoder.run(depth, states[-1])
        states.append(hidden)
        blocks.append(block)
        if depth in candidates:
            output = LayerOutput(depth, hidden, states[-2], ~ended)
            decisions.append(policy.decide(output, jnp.asarray(ALWAYS), heads))

    tokens = jnp.stack([decision.token for decision in decisions])  # (candidate depths, batch)
    first = jnp.argmax(tokens == tokens[-1], axis=0)  # (batch,)
    rows = jnp.arange(len(token))
    confidence = jnp.stack([decision.confidence for decision in decisions])[first, rows]
    confidence = jnp.where(jnp.isnan(decisions[-1].confidence), jnp.nan, confidence)  # the token is from there
    exit_layer = jnp.array(candidates)[first]
    exit_state = jnp.stack(states)[exit_layer, rows]  # (batch, d_model)
    if policy.propagates_state:
        blocks = [
            decoder.append(depth, jnp.where((exit_layer < depth)[:, None], exit_state, states[depth - 1]))
            for depth in range(1, policy.last_depth + 1)
        ]
    state = DepthState(
        hidden=exit_state,
        exited=jnp.ones_like(ended),
        exit_layer=jnp.where(ended, 0, exit_layer),
        token=jnp.where(ended, config.pad_token_id, tokens[-1]),
        confidence=jnp.where(ended, 0.0, confidence),
        previous=None,
        kept=None,
        recent=None,
    )
    return state, decoder.updated_cache(blocks)
