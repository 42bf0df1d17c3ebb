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
import operator
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.decode.cache import Block, CachedDecoder, KVCache, Waiting, window_sizes
from dvp_jax.decode.layer_loop import DepthState, grouped, masked, run_to_first_exit, run_until_exit
from dvp_jax.decode.program import DecodeInputs, DecodeProgram, heads_at, heads_of
from dvp_jax.exits.policy import ExitDecision, Heads, LayerOutput, Lossless, Verdict
from dvp_jax.exits.pruning import Kept
from dvp_jax.t5.backend import backend
from dvp_jax.t5.int8 import int8_pays
from dvp_jax.t5.model import embed


@struct.dataclass
class WindowState:
    """What travels from layer to layer: the tokens of the window, this one last."""

    current: DepthState  # of this token; `exited` once it was read
    hidden: Float[Array, "batch window d_model"]  # h_l of each token
    depths: Int[Array, "batch window"]  # l of each token; L where nothing is left to run
    stopped: Bool[Array, " batch"]  # rows that run no deeper layer in this step
    verdict: Verdict  # on the drafts that reached the last depth

    def output(self, depth: int) -> LayerOutput:
        """What the policy sees at `depth`: this token."""
        return self.current.output(depth)

    def with_kept(self, kept: Kept) -> WindowState:
        """The state with another mask over the kept rows."""
        return dataclasses.replace(self, current=self.current.with_kept(kept))

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
    is_finite: Bool[Array, " batch"]  # whether the logits that replaced it are
    length: Int[Array, " batch"]  # of the text after this step
    last: Int[Array, " batch"]  # its last token


def decode_deferred_token(
    program: DecodeProgram,
    inputs: DecodeInputs,
    cache: KVCache,
    text: Int[Array, "batch max_new_tokens"],
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
    thresholds = jax.vmap(operator.getitem)(inputs.settings.thresholds, cache.lengths)  # (batch, num_depths)
    full, heads = heads_of(program, inputs, text, cache.lengths, cache.recent)
    is_last_place = cache.lengths + 1 >= inputs.settings.max_new_tokens

    def run_layer(heads: Heads, depth: int, state: WindowState) -> tuple[WindowState, Block]:
        with jax.named_scope(f"layer_{depth}"):
            hidden, block = _run_entering(decoder, depth, policy.first_exit, state)
            state = state.after_layer(depth, hidden)
        if depth in policy.candidates:
            with jax.named_scope(f"question_{depth}"):
                current = state.current
                decision = policy.decide(current.output(depth), thresholds[:, depth - 1], masked(heads, current))
                current = current.exit(decision).with_kept(decision.kept)
                is_full = state.depths[:, 0] < policy.last_depth
                ends = policy.verifies & (program.config.ends(decision.token) | is_last_place)
                stops = decision.exits & ~is_full & ~ends
                state = dataclasses.replace(state, current=current, stopped=state.stopped | stops)
        return state, block

    # Up to the first exit no token waits, and the policy may prune the vocabulary.
    embedded = embed(inputs.params["shared"], token[:, None])[:, 0]
    state = _start(cache, DepthState.start(embedded, ended, program, heads, cache.recent), policy.last_depth)
    heads, state, blocks = run_to_first_exit(run_layer, policy, heads, state)

    # The deeper layers run while some row goes on.
    def skip(depth: int, state: WindowState) -> list[Block]:
        return [decoder.so_far(deeper) for deeper in range(depth + 1, policy.last_depth + 1)]

    deeper = range(policy.first_exit + 1, policy.last_depth + 1)
    groups = grouped(deeper, policy.candidates, program.branch_every)
    read_last = partial(_read_last, program, inputs, full, cache, text)
    state, blocks = run_until_exit(partial(run_layer, heads), read_last, skip, groups, state, blocks)
    result, waiting = _outcome(program, cache, state, ended)
    cache = decoder.updated_cache(blocks, waiting, state.current.recent)
    return result, dataclasses.replace(cache, lengths=result.length)


def _start(cache: KVCache, current: DepthState, last_depth: int) -> WindowState:
    """The state before the first layer: the waiting tokens, and this one."""
    assert cache.waiting is not None
    own_depth = jnp.where(current.exited, last_depth, 0)
    zeros = jnp.zeros_like(own_depth)
    return WindowState(
        current=current,
        hidden=cache.waiting.hidden.at[:, -1].set(current.hidden),
        depths=cache.waiting.depths.at[:, -1].set(own_depth),
        stopped=current.exited,
        verdict=Verdict(zeros > 0, zeros, zeros == 0, zeros),
    )


def _run_entering(
    decoder: CachedDecoder, depth: int, first_exit: int, state: WindowState
) -> tuple[Float[Array, "batch window d_model"], Block]:
    """Runs the layer at `depth` on the tokens that enter it. In most steps that is this token alone."""

    def run_alone(hidden: Array) -> tuple[Array, Block]:
        own, keys_values = decoder.run(depth, hidden[:, -1])
        before = decoder.so_far(depth)[..., :-1, :]
        return hidden.at[:, -1].set(own), jnp.concatenate([before, keys_values], axis=-2)

    def run_newest(size: int, hidden: Array) -> tuple[Array, Block]:
        own, block = decoder.run_window(depth, hidden[:, -size:], entering[:, -size:])
        return hidden.at[:, -size:].set(own), block

    entering = state.entering(depth)
    if depth <= first_exit:
        return run_alone(state.hidden)
    sizes = window_sizes(entering.shape[1])
    branches: list[Callable[[Array], tuple[Array, Block]]] = [
        run_alone if size == 1 else partial(run_newest, size) for size in sizes
    ]
    return lax.switch(_first_that_holds(entering, sizes), branches, state.hidden)


def _first_that_holds(tokens: Bool[Array, "batch window"], sizes: list[int]) -> Int[Array, ""]:
    """Index of the first size that holds the tokens of each row, which are its newest ones."""
    return jnp.searchsorted(jnp.array(sizes), jnp.max(jnp.sum(tokens, axis=1)))


def _read_last(
    program: DecodeProgram,
    inputs: DecodeInputs,
    full: Heads,
    cache: KVCache,
    text: Int[Array, "batch max_new_tokens"],
    state: WindowState,
) -> WindowState:
    """Reads the rows that reached the last depth; with a policy that verifies, their drafts as well."""
    policy = program.policy
    output = state.current.output(policy.last_depth)
    if not isinstance(policy, Lossless):
        return dataclasses.replace(state, current=state.current.exit(policy.read_final(output, full, full)))
    assert cache.waiting is not None
    is_draft = (cache.waiting.depths < policy.last_depth).at[:, -1].set(state.current.exited)
    is_draft = is_draft & ~state.stopped[:, None]
    drafts = cache.waiting.drafts.at[:, -1].set(state.current.token)

    def verify(size: int) -> tuple[ExitDecision, Verdict]:
        newest = slice(-size, None)
        heads = heads_at(program, inputs, text, cache.lengths[:, None] + jnp.arange(1 - size, 1))
        if not int8_pays(backend(), len(drafts) * size):
            heads = heads._replace(vocabulary=dataclasses.replace(heads.vocabulary, int8=None))
        return policy.verify(state.hidden[:, newest], drafts[:, newest], is_draft[:, newest], output, heads)

    sizes = window_sizes(drafts.shape[1])
    # The newest token is read in any case.
    index = _first_that_holds(is_draft.at[:, -1].set(True), sizes)
    decision, verdict = lax.switch(index, [partial(verify, size) for size in sizes])
    current = state.current.exit(decision)
    if decision.recent is not None:  # also where this token is a draft
        assert current.recent is not None
        recent = jnp.where(state.stopped[:, None], current.recent, decision.recent)
        current = dataclasses.replace(current, recent=recent)
    return dataclasses.replace(state, current=current, verdict=verdict)


def _outcome(
    program: DecodeProgram, cache: KVCache, state: WindowState, ended: Bool[Array, " batch"]
) -> tuple[DeferredToken, Waiting]:
    """What a step says about each row, and what waits after it."""
    waiting, current, verdict, last_depth = cache.waiting, state.current, state.verdict, program.policy.last_depth
    assert waiting is not None
    token = DeferredToken(
        current=current,
        num_layers=jnp.where(state.stopped, current.exit_layer, last_depth) * ~ended,
        corrected=verdict.corrected,
        is_finite=verdict.is_finite,
        length=cache.lengths + jnp.where(ended, 0, 1 - jnp.where(verdict.corrected, verdict.num_forgotten, 0)),
        last=jnp.where(verdict.corrected, verdict.token, current.token),
    )
    depths = jnp.where(verdict.corrected[:, None], last_depth, state.depths)
    drafts = waiting.drafts.at[:, -1].set(current.token)
    shift = partial(jnp.roll, shift=-1, axis=1)  # the next token's place is the last one
    return token, Waiting(shift(state.hidden), shift(depths), shift(drafts))
