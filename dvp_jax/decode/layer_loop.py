"""How the layers after the first exit run: until every row has exited, or all of them or none.

`cond_loop` and `while_loop` are interchangeable. Both run layers until every row has exited; then state
propagation gives the skipped layers their keys and values. `run_together` is FREE's. Depths are Python integers in
all of them, so the program of a layer may depend on its depth. Weights and caches are closed over by the branches
and never carried, hence never copied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.decode.cache import CachedDecoder
from dvp_jax.exits.policy import ExitDecision, LayerOutput
from dvp_jax.t5.layers import KeysValues


@struct.dataclass
class DepthState:
    """What travels from layer to layer while one token of every row is decoded."""

    hidden: Float[Array, "batch d_model"]  # h_l, frozen at h_e once the row has exited
    exited: Bool[Array, " batch"]  # also True where the text has ended
    exit_layer: Int[Array, " batch"]  # layers run so far; 0 where the text has ended
    token: Int[Array, " batch"]
    confidence: Float[Array, " batch"]
    previous: Float[Array, "batch d_model"] | None  # h_(l-1), for a policy that needs it
    kept: Bool[Array, "batch kept"] | None  # candidates among the kept rows, for a rule that masks them

    def after_layer(self, depth: int, hidden: Float[Array, "batch d_model"]) -> DepthState:
        """The state after the layer at `depth`, whose output is `hidden`. Exited rows stay as they are."""
        return dataclasses.replace(
            self,
            hidden=jnp.where(self.exited[:, None], self.hidden, hidden),
            exit_layer=jnp.where(self.exited, self.exit_layer, depth),
            previous=None if self.previous is None else self.hidden,
        )

    def output(self, depth: int) -> LayerOutput:
        """What the policy sees at `depth`."""
        return LayerOutput(depth, self.hidden, self.previous, ~self.exited)

    def exit(self, decision: ExitDecision) -> DepthState:
        """The state after the rows that a decision names have exited."""
        return dataclasses.replace(
            self,
            exited=self.exited | decision.exits,
            token=jnp.where(decision.exits, decision.token, self.token),
            confidence=jnp.where(decision.exits, decision.confidence, self.confidence),
        )


RunLayer = Callable[[int, DepthState], tuple[DepthState, KeysValues]]
Propagate = Callable[[int, Float[Array, "batch d_model"]], KeysValues]


def cond_loop(
    run: RunLayer, depths: Sequence[int], state: DepthState
) -> tuple[Int[Array, ""], DepthState, list[KeysValues]]:
    """Unrolled: one `lax.cond` a layer.

    Args:
        run: one layer.
        depths: of the layers, in order.
        state: before the first of them.

    Returns:
        How many of the layers ran, the state after them, and the keys and values of each layer (zeros where it
        did not run).
    """
    if not depths:
        return jnp.int32(0), state, []

    _, shapes = jax.eval_shape(partial(run, depths[0]), state)

    def skip(state: DepthState) -> tuple[DepthState, KeysValues]:
        return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    num_ran, keys_values = jnp.int32(0), []
    for depth in depths:
        all_exited = jnp.all(state.exited)
        state, own = lax.cond(all_exited, skip, partial(run, depth), state)
        num_ran += ~all_exited
        keys_values.append(own)
    return num_ran, state, keys_values


def while_loop(
    run: RunLayer, depths: Sequence[int], state: DepthState
) -> tuple[Int[Array, ""], DepthState, list[KeysValues]]:
    """A `lax.while_loop` over depth that picks the layer by `lax.switch`. Args and Returns as `cond_loop`."""
    if not depths:
        return jnp.int32(0), state, []

    def some_row_is_active(carry: tuple) -> Any:
        index, state, _ = carry
        return (index < len(depths)) & ~jnp.all(state.exited)

    def next_layer(carry: tuple) -> tuple:
        index, state, keys_values = carry
        state, own = lax.switch(index, [partial(run, depth) for depth in depths], state)
        write = partial(lax.dynamic_update_index_in_dim, index=index, axis=0)
        return index + 1, state, jax.tree.map(write, keys_values, own)

    _, shapes = jax.eval_shape(partial(run, depths[0]), state)
    stacked = jax.tree.map(lambda x: jnp.zeros((len(depths), *x.shape), x.dtype), shapes)
    carry = (jnp.int32(0), state, stacked)
    num_ran, state, (keys, values) = lax.while_loop(some_row_is_active, next_layer, carry)
    return num_ran, state, list(zip(keys, values, strict=True))


def propagate_state(
    propagate: Propagate,
    depths: Sequence[int],
    num_ran: Int[Array, ""],
    state: DepthState,
    keys_values: list[KeysValues],
) -> list[KeysValues]:
    """State propagation (CALM, section 3): skipped layers take keys and values from the state of the exit.

    One straight branch for each number of layers that ran: its products are independent of each other.

    Args:
        propagate: keys and values of one layer from h_e.
        depths: of the layers.
        num_ran: how many of them ran; the others were skipped.
        state: after the layers that ran.
        keys_values: of the layers that ran.

    Returns:
        Keys and values of all the layers.
    """

    def branch(ran: int, hidden: Array, keys_values: list[KeysValues]) -> list[KeysValues]:
        return keys_values[:ran] + [propagate(depth, hidden) for depth in depths[ran:]]

    branches = [partial(branch, ran) for ran in range(len(depths) + 1)]
    return lax.switch(num_ran, branches, state.hidden, keys_values)


def run_together(
    decoder: CachedDecoder, depths: Sequence[int], state: DepthState
) -> tuple[Int[Array, ""], DepthState, list[KeysValues]]:
    """Shallow-deep (FREE, section 3): all deeper layers run, for this token and the waiting ones, or none does.

    They run where a row has not exited, and at the end of a block. A token that exited then has the keys and
    values of the full model. Returns as `cond_loop`; where no layer ran, the blocks as they were.
    """

    def skip(state: DepthState) -> tuple[Array, DepthState, list[KeysValues]]:
        return jnp.int32(0), state, [decoder.block_so_far(depth) for depth in depths]

    def run(state: DepthState) -> tuple[Array, DepthState, list[KeysValues]]:
        alone = decoder.nothing_waits(depths[0])
        (hidden, previous), blocks = lax.cond(alone, run_alone, run_with_waiting, state.hidden)
        state = dataclasses.replace(
            state,
            hidden=jnp.where(state.exited[:, None], state.hidden, hidden),
            previous=None
            if state.previous is None
            else jnp.where(state.exited[:, None], state.previous, previous),
            exit_layer=jnp.where(state.exited, state.exit_layer, depths[-1]),
        )
        return jnp.int32(len(depths)), state, blocks

    def run_alone(hidden: Array) -> tuple[tuple[Array, Array], list[KeysValues]]:
        previous, blocks = hidden, []
        for depth in depths:
            previous = hidden
            hidden, block = decoder.run(depth, hidden)
            blocks.append(block)
        return (hidden, previous), blocks

    def run_with_waiting(hidden: Array) -> tuple[tuple[Array, Array], list[KeysValues]]:
        states = previous = decoder.block_states(hidden)  # (batch, block, d_model)
        blocks = []
        for depth in depths:
            previous = states
            states, block = decoder.run_block(depth, states)
            blocks.append(block)
        own = (lax.dynamic_index_in_dim(x, decoder.column, axis=1, keepdims=False) for x in (states, previous))
        return tuple(own), blocks

    return lax.cond(jnp.all(state.exited) & ~decoder.block_ends, skip, run, state)


LAYER_LOOPS = {"cond": cond_loop, "while": while_loop}

FASTER_LAYER_LOOP = {"cpu": "cond"}
"""The faster loop of each backend, by measurement (docs/performance.md)."""


def choose_layer_loop(layer_loop: str) -> str:
    """Resolves "auto" for the default backend; "cond" where none was measured."""
    return FASTER_LAYER_LOOP.get(jax.default_backend(), "cond") if layer_loop == "auto" else layer_loop
