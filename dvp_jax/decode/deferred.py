"""One token of every row, where skipped layers run later: drafts that the full model verifies, and FREE.

A token that exits waits. Before a later token of its row enters a deeper layer, the layer runs for the waiting
tokens as well, side by side, so that every token attends to the states of the full model. The tokens that enter a
layer are therefore the newest of the window:

    window of 4     a draft at depth 2      this token, exits at 3          depths after it
    depths          L  L  2                 layer 3 runs for both           L  3  3

When the window is full, all of it runs to the last depth. With a policy that verifies, so it does when a draft
ends the text, and the last depth confirms or replaces each draft.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.decode.cache import Block, CachedDecoder, KVCache, Waiting
from dvp_jax.decode.layer_loop import DepthState, grouped, masked, run_until_exit
from dvp_jax.decode.program import DecodeInputs, DecodeProgram, full_heads
from dvp_jax.exits.policy import ExitDecision, Heads, Lossless
from dvp_jax.t5.model import embed


@struct.dataclass
class WindowState:
    """What travels from layer to layer: the tokens of the window, this one last."""

    current: DepthState  # of this token; `exited` once it was read
    hidden: Float[Array, "batch window d_model"]  # h_l of each token
    depths: Int[Array, "batch window"]  # l of each token; L where nothing is left to run
    stopped: Bool[Array, " batch"]  # rows that run no deeper layer in this step
    likeliest: Int[Array, "batch window"]  # token of each at the last depth, once it was read there

    def entering(self, depth: int) -> Bool[Array, "batch window"]:
        """The tokens that run the layer at `depth`."""
        return (self.depths == depth - 1) & ~self.stopped[:, None]

    def after_layer(self, depth: int, hidden: Float[Array, "batch window d_model"]) -> WindowState:
        """The state after the layer at `depth`, whose output is `hidden`."""
        entering = self.entering(depth)
        return dataclasses.replace(
            self,
            current=self.current.after_layer(depth, hidden[:, -1]),
            hidden=jnp.where(entering[:, :, None], hidden, self.hidden),
            depths=jnp.where(entering, depth, self.depths),
        )


@struct.dataclass
class DeferredToken:
    """What a step says about each row."""

    current: DepthState  # of this token: as it was read first
    num_layers: Int[Array, " batch"]  # that ran one after the other
    corrected: Bool[Array, " batch"]  # rows in which a draft was replaced
    length: Int[Array, " batch"]  # of the text after this step
    last: Int[Array, " batch"]  # its last token


def decode_deferred_token(
    program: DecodeProgram,
    inputs: DecodeInputs,
    cache: KVCache,
    token: Int[Array, " batch"],
    ended: Bool[Array, " batch"],
) -> tuple[DeferredToken, KVCache]:
    """Decodes the token after `token` in every row whose text has not ended.

    Args as `decode_token`.

    Returns:
        The token of each row, which may be a draft, and what became of earlier drafts; and the cache.
    """
    policy = program.policy
    decoder = CachedDecoder(program, inputs, cache)
    thresholds = inputs.thresholds[cache.lengths]  # (batch, num_depths)
    heads = full = full_heads(program.config, inputs.params, inputs.int8)
    is_last_place = cache.lengths + 1 >= program.max_new_tokens

    def run_layer(heads: Heads, depth: int, state: WindowState) -> tuple[WindowState, Block]:
        with jax.named_scope(f"layer_{depth}"):
            hidden, block = _run_entering(decoder, depth, policy.first_exit, state)
            state = state.after_layer(depth, hidden)
        if depth in policy.candidates:
            with jax.named_scope(f"question_{depth}"):
                current = state.current
                decision = policy.decide(current.output(depth), thresholds[:, depth - 1], masked(heads, current))
                current = dataclasses.replace(current.exit(decision), kept=decision.kept)
                is_full = state.depths[:, 0] < policy.last_depth
                ends = policy.verifies & ((decision.token == program.config.eos_token_id) | is_last_place)
                stops = decision.exits & ~is_full & ~ends
                state = dataclasses.replace(state, current=current, stopped=state.stopped | stops)
        return state, block

    # Up to the first exit no token waits, and the policy may prune the vocabulary.
    state = _start(program, cache, embed(inputs.params["shared"], token[:, None])[:, 0], ended)
    blocks = []
    for depth in range(1, policy.first_exit + 1):
        state, block = run_layer(heads, depth, state)
        blocks.append(block)
        with jax.named_scope(f"prune_{depth}"):
            pruned = policy.prune(state.current.output(depth), heads.vocabulary)
        if pruned is not heads.vocabulary:
            current = dataclasses.replace(state.current, kept=pruned.kept)
            heads, state = heads._replace(vocabulary=pruned), dataclasses.replace(state, current=current)

    # The deeper layers run while some row goes on.
    def skip(depth: int, state: WindowState) -> list[Block]:
        return [decoder.so_far(deeper) for deeper in range(depth + 1, policy.last_depth + 1)]

    deeper = range(policy.first_exit + 1, policy.last_depth + 1)
    groups = grouped(deeper, policy.candidates, program.branch_every)
    read_last = partial(_read_last, program, full, cache)
    state, blocks = run_until_exit(partial(run_layer, heads), read_last, skip, groups, state, blocks)
    result, waiting = _verified(program, cache, state, ended)
    return result, dataclasses.replace(decoder.updated_cache(blocks, waiting), lengths=result.length)


def _start(
    program: DecodeProgram, cache: KVCache, embedded: Float[Array, "batch d_model"], ended: Bool[Array, " batch"]
) -> WindowState:
    """The state before the first layer: the waiting tokens, and h_0 of this one."""
    assert cache.waiting is not None
    own_depth = jnp.where(ended, program.policy.last_depth, 0)
    return WindowState(
        current=DepthState.start(embedded, ended, program),
        hidden=cache.waiting.hidden.at[:, -1].set(embedded),
        depths=cache.waiting.depths.at[:, -1].set(own_depth),
        stopped=ended,
        likeliest=jnp.zeros_like(cache.waiting.drafts),
    )


def _run_entering(
    decoder: CachedDecoder, depth: int, first_exit: int, state: WindowState
) -> tuple[Float[Array, "batch window d_model"], Block]:
    """Runs the layer at `depth` on the tokens that enter it. In most steps that is this token alone."""

    def run_alone(hidden: Array) -> tuple[Array, Block]:
        own, keys_values = decoder.run(depth, hidden[:, -1])
        before = decoder.so_far(depth)[..., :-1, :]
        return hidden.at[:, -1].set(own), jnp.concatenate([before, keys_values], axis=-2)

    def run_window(hidden: Array) -> tuple[Array, Block]:
        return decoder.run_window(depth, hidden, entering)

    entering = state.entering(depth)
    if depth <= first_exit or entering.shape[1] == 1:
        return run_alone(state.hidden)
    return lax.cond(jnp.any(entering[:, :-1]), run_window, run_alone, state.hidden)


def _read_last(program: DecodeProgram, full: Heads, cache: KVCache, state: WindowState) -> WindowState:
    """Reads the rows that reached the last depth; with a policy that verifies, their waiting tokens as well."""
    policy = program.policy
    output = state.current.output(policy.last_depth)
    if not isinstance(policy, Lossless):
        return dataclasses.replace(state, current=state.current.exit(policy.read_final(output, full, full)))

    def read_alone(hidden: Array) -> tuple[ExitDecision, Array]:
        decision, likeliest = policy.verify(hidden[:, -1:], output, full)
        return decision, jnp.broadcast_to(likeliest, hidden.shape[:2])

    def read_window(hidden: Array) -> tuple[ExitDecision, Array]:
        return policy.verify(hidden, output, full)

    assert cache.waiting is not None
    some_wait = jnp.any((cache.waiting.depths[:, :-1] < policy.last_depth) & ~state.stopped[:, None])
    decision, likeliest = lax.cond(some_wait, read_window, read_alone, state.hidden)
    return dataclasses.replace(state, current=state.current.exit(decision), likeliest=likeliest)


def _verified(
    program: DecodeProgram, cache: KVCache, state: WindowState, ended: Bool[Array, " batch"]
) -> tuple[DeferredToken, Waiting]:
    """What became of the drafts, and what waits after this step."""
    waiting, current, last_depth = cache.waiting, state.current, program.policy.last_depth
    assert waiting is not None
    drafts = waiting.drafts.at[:, -1].set(current.token)
    is_draft = (waiting.depths < last_depth).at[:, -1].set(current.exit_layer < last_depth)
    wrong = is_draft & (state.likeliest != drafts) & ~state.stopped[:, None] & program.policy.verifies
    corrected, first = jnp.any(wrong, axis=1), jnp.argmax(wrong, axis=1)  # (batch,)
    kept_of_window = jnp.where(corrected, first + 1, drafts.shape[1])
    length = cache.lengths + 1 - drafts.shape[1] + kept_of_window
    replacement = jnp.take_along_axis(state.likeliest, first[:, None], axis=1)[:, 0]
    token = DeferredToken(
        current=current,
        num_layers=jnp.where(state.stopped, current.exit_layer, last_depth) * ~ended,
        corrected=corrected,
        length=jnp.where(ended, cache.lengths, length),
        last=jnp.where(corrected, replacement, current.token),
    )
    depths = jnp.where(corrected[:, None], last_depth, state.depths)
    shift = partial(jnp.roll, shift=-1, axis=1)  # the next token's place is the last one
    return token, Waiting(shift(state.hidden), shift(depths), shift(drafts))
