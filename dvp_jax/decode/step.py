"""One token of every row: run layers, ask the policy at each candidate depth, propagate state."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.decode.cache import CachedDecoder, DecodeProgram, Encoded, KVCache
from dvp_jax.decode.layer_loop import LAYER_LOOPS, DepthState, propagate_state, run_together
from dvp_jax.exits.policy import ExitDecision, Heads, LayerOutput
from dvp_jax.exits.vocabulary import Vocabulary
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.layers import KeysValues
from dvp_jax.t5.model import Params, embed, unembedding


def decode_token(
    structure: DecodeProgram,
    params: Params,
    encoded: Encoded,
    memory: KVCache,
    token: Int[Array, " batch"],
    ended: Bool[Array, " batch"],
    thresholds: Float[Array, "max_new_tokens num_depths"],
) -> tuple[DepthState, KVCache]:
    """Decodes the token after `token` in every row whose text has not ended.

    Args:
        structure: model, policy and loop.
        params: of the model.
        encoded: the sources.
        memory: of the tokens before.
        token: the last token of each row.
        ended: rows that need no token.
        thresholds: what confidence must exceed, for the token after t others at depth l in thresholds[t, l - 1].

    Returns:
        The rows' tokens, exits and confidences, and the memory that has them.
    """
    config, policy = structure.config, structure.policy
    layers = CachedDecoder(structure, params, encoded, memory)
    of_row = thresholds[memory.age]
    vocabulary = whole = full_vocabulary(config, params)
    meta = params.get("meta")

    def at(depth: int, state: DepthState) -> LayerOutput:
        return LayerOutput(depth, state.hidden, state.before, ~state.exited)

    def kept_readers(state: DepthState) -> Heads:
        # Once the loop below runs, `vocabulary` is what the policy kept.
        return Heads(dataclasses.replace(vocabulary, kept=state.kept), meta)

    def leave(state: DepthState, reading: ExitDecision) -> DepthState:
        return dataclasses.replace(
            state,
            exited=state.exited | reading.leaves,
            token=jnp.where(reading.leaves, reading.token, state.token),
            confidence=jnp.where(reading.leaves, reading.confidence, state.confidence),
        )

    def run(depth: int, state: DepthState) -> tuple[DepthState, KeysValues]:
        hidden, block = layers.run(depth, state.hidden)
        state = dataclasses.replace(
            state,
            hidden=jnp.where(state.exited[:, None], state.hidden, hidden),
            exit_layer=jnp.where(state.exited, state.exit_layer, depth),
            before=state.hidden if policy.compares else None,
        )
        if policy.first_exit <= depth < policy.last_depth:
            reading = policy.decide(at(depth, state), of_row[:, depth - 1], kept_readers(state))
            state = dataclasses.replace(leave(state, reading), kept=reading.kept)
        return state, block

    embedded = embed(params["shared"], token[:, None])[:, 0]
    state = DepthState(
        hidden=embedded,
        exited=ended,
        exit_layer=jnp.zeros_like(token),
        token=jnp.full_like(token, config.pad_token_id),
        confidence=jnp.zeros(token.shape, jnp.float32),
        before=embedded if policy.compares else None,
        kept=None,
    )
    blocks = []
    for depth in range(1, policy.first_exit + 1):
        state, block = run(depth, state)
        vocabulary = policy.observe(at(depth, state), vocabulary)
        state = dataclasses.replace(state, kept=vocabulary.kept)
        blocks.append(block)

    deeper = range(policy.first_exit + 1, policy.last_depth + 1)
    if policy.all_or_none:
        count, state, rest = run_together(layers, deeper, state)
    else:
        count, state, ran = LAYER_LOOPS[structure.layer_loop](run, deeper, state)
        rest = propagate_state(layers.propagate, deeper, count, state, ran)
    memory = layers.remember(state.hidden, policy.first_exit + count, blocks + rest)

    def read_last(state: DepthState) -> DepthState:
        last = at(policy.last_depth, state)
        return leave(state, policy.read_last(last, Heads(whole, meta), kept_readers(state)))

    return lax.cond(jnp.all(state.exited), lambda state: state, read_last, state), memory


def full_vocabulary(config: T5Config, params: Params) -> Vocabulary:
    """Every token, read through the decoder's final norm."""
    return Vocabulary(
        rows=unembedding(config, params),
        ids=None,
        norm=params["decoder"]["final_norm"]["scale"],
        screen=params.get("screen"),
        epsilon=config.layer_norm_epsilon,
        scale=config.logit_scale,
    )
