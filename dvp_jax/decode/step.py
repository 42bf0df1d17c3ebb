"""One token of every row: run layers, ask the policy at each candidate depth, propagate state."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from dvp_jax.decode.cache import CachedDecoder, KVCache
from dvp_jax.decode.layer_loop import LAYER_LOOPS, DepthState, propagate_state, run_together
from dvp_jax.decode.program import DecodeInputs, DecodeProgram, full_heads
from dvp_jax.exits.policy import Heads
from dvp_jax.t5.layers import KeysValues
from dvp_jax.t5.model import embed


def decode_token(
    program: DecodeProgram,
    inputs: DecodeInputs,
    cache: KVCache,
    token: Int[Array, " batch"],
    ended: Bool[Array, " batch"],
) -> tuple[DepthState, KVCache]:
    """Decodes the token after `token` in every row whose text has not ended.

    Args:
        program: model, policy and loop over layers.
        inputs: parameters, sources and thresholds.
        cache: of the tokens before.
        token: the last token of each row.
        ended: rows that need no token.

    Returns:
        Tokens, exit layers and confidences of the rows, and the cache with their keys and values.
    """
    policy = program.policy
    decoder = CachedDecoder(program, inputs, cache)
    thresholds = inputs.thresholds[cache.lengths]  # (batch, num_depths)
    heads = full = full_heads(program.config, inputs.params, inputs.int8)

    def run_layer(heads: Heads, depth: int, state: DepthState) -> tuple[DepthState, KeysValues]:
        hidden, block = decoder.run(depth, state.hidden)
        state = state.after_layer(depth, hidden)
        if policy.first_exit <= depth < policy.last_depth:
            decision = policy.decide(state.output(depth), thresholds[:, depth - 1], _masked(heads, state))
            state = dataclasses.replace(state.exit(decision), kept=decision.kept)
        return state, block

    # Up to the first exit every layer runs, and the policy may prune the vocabulary.
    embedded = embed(inputs.params["shared"], token[:, None])[:, 0]  # h_0: (batch, d_model)
    state = DepthState(
        hidden=embedded,
        exited=ended,
        exit_layer=jnp.zeros_like(token),
        token=jnp.full_like(token, program.config.pad_token_id),
        confidence=jnp.zeros(token.shape, jnp.float32),
        previous=embedded if policy.needs_previous_hidden else None,
        kept=None,
    )
    blocks = []
    for depth in range(1, policy.first_exit + 1):
        state, block = run_layer(heads, depth, state)
        blocks.append(block)
        pruned = policy.prune(state.output(depth), heads.vocabulary)
        if pruned is not heads.vocabulary:
            heads, state = heads._replace(vocabulary=pruned), dataclasses.replace(state, kept=pruned.kept)

    # The deeper layers run while some row has not exited.
    deeper = range(policy.first_exit + 1, policy.last_depth + 1)
    if policy.loop == "shallow_deep":
        num_ran, state, deeper_blocks = run_together(decoder, deeper, state)
    else:
        num_ran, state, ran_blocks = LAYER_LOOPS[program.layer_loop](partial(run_layer, heads), deeper, state)
        deeper_blocks = propagate_state(decoder.append, deeper, num_ran, state, ran_blocks)
    cache = decoder.updated_cache(state.hidden, policy.first_exit + num_ran, blocks + deeper_blocks)

    # Rows that reached the last depth are read there.
    def read_final(state: DepthState) -> DepthState:
        return state.exit(policy.read_final(state.output(policy.last_depth), full, _masked(heads, state)))

    return lax.cond(jnp.all(state.exited), lambda state: state, read_final, state), cache


def _masked(heads: Heads, state: DepthState) -> Heads:
    """The heads with the mask over the kept rows that the shallower depths left."""
    return heads._replace(vocabulary=dataclasses.replace(heads.vocabulary, kept=state.kept))
