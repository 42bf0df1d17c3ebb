"""One token of every row: run layers, ask the policy at each candidate depth, propagate state."""

from __future__ import annotations

import operator
from functools import partial

import jax
from jaxtyping import Array, Bool, Int

from dvp_jax.decode.cache import Block, CachedDecoder, KVCache
from dvp_jax.decode.layer_loop import DepthState, grouped, masked, run_to_first_exit, run_until_exit
from dvp_jax.decode.program import DecodeInputs, DecodeProgram, heads_of
from dvp_jax.exits.policy import Heads
from dvp_jax.t5.model import embed


def decode_token(
    program: DecodeProgram,
    inputs: DecodeInputs,
    cache: KVCache,
    text: Int[Array, "batch max_new_tokens"],
    token: Int[Array, " batch"],
    ended: Bool[Array, " batch"],
) -> tuple[DepthState, KVCache]:
    """Decodes the token after `token` in every row whose text has not ended.

    Args:
        program: model, policy and branching.
        inputs: parameters, sources and settings.
        cache: of the tokens before.
        text: the tokens of each row so far; what follows them does not matter.
        token: the last one, or the start token.
        ended: rows that need no token.

    Returns:
        Tokens, exit layers and confidences of the rows, and the cache with their keys and values.
    """
    policy = program.policy
    decoder = CachedDecoder(program, inputs, cache)
    thresholds = jax.vmap(operator.getitem)(inputs.settings.thresholds, cache.lengths)  # (batch, num_depths)
    full, heads = heads_of(program, inputs, text, cache.lengths, cache.recent)

    def run_layer(heads: Heads, depth: int, state: DepthState) -> tuple[DepthState, Block]:
        with jax.named_scope(f"layer_{depth}"):
            hidden, block = decoder.run(depth, state.hidden)
            state = state.after_layer(depth, hidden)
        if depth in policy.candidates:
            with jax.named_scope(f"question_{depth}"):
                decision = policy.decide(state.output(depth), thresholds[:, depth - 1], masked(heads, state))
                state = state.exit(decision).with_kept(decision.kept)
        return state, block

    # Up to the first exit every layer runs, and the policy may prune the vocabulary.
    embedded = embed(inputs.params["shared"], token[:, None])[:, 0]
    state = DepthState.start(embedded, ended, program, heads, cache.recent)
    heads, state, blocks = run_to_first_exit(run_layer, policy, heads, state)

    def propagate(depth: int, state: DepthState) -> list[Block]:
        return decoder.propagate(depth, state.hidden)

    @jax.named_scope("read_final")
    def read_final(state: DepthState) -> DepthState:
        return state.exit(policy.read_final(state.output(policy.last_depth), full, masked(heads, state)))

    # The deeper layers run while some row has not exited. Rows that reach the last depth are read there.
    deeper = range(policy.first_exit + 1, policy.last_depth + 1)
    groups = grouped(deeper, policy.candidates, program.branch_every)
    state, blocks = run_until_exit(partial(run_layer, heads), read_final, propagate, groups, state, blocks)
    return state, decoder.updated_cache(blocks, recent=state.recent)
