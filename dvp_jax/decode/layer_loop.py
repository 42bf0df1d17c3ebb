"""Two interchangeable loops over the layers of one token: the heart of early exit. And FREE's, for all or none.

Both run layers until every row has exited; then state propagation gives the layers that did not run the keys
and values they are owed. Depths are Python integers in all of them, so a layer's program may depend on its
depth. Weights and caches are closed over by the branches, never carried, and so never copied.
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
from dvp_jax.t5.layers import KeysValues


@struct.dataclass
class DepthState:
    """What travels from layer to layer while one token of every row is decoded."""

    hidden: Float[Array, "batch d_model"]  # h_l, frozen at h_e once the row has exited
    exited: Bool[Array, " batch"]  # rows that left, and rows whose text has ended
    exit_layer: Int[Array, " batch"]  # layers run so far; 0 where the text has ended
    token: Int[Array, " batch"]
    confidence: Float[Array, " batch"]
    before: Float[Array, "batch d_model"] | None  # h_(l-1) of the rows that go on, for a policy that compares
    kept: Bool[Array, "batch kept"] | None  # candidates among the kept rows, for a policy that masks them


RunLayer = Callable[[int, DepthState], tuple[DepthState, KeysValues]]
Propagate = Callable[[int, Float[Array, "batch d_model"]], KeysValues]


def cond_loop(
    run: RunLayer, depths: Sequence[int], state: DepthState
) -> tuple[Array, DepthState, list[KeysValues]]:
    """Unrolled: one `lax.cond` a layer.

    Returns:
        How many of the layers ran, the state after them, and the keys and values of each (zeros where it
        did not run).
    """
    if not depths:
        return jnp.int32(0), state, []

    _, shapes = jax.eval_shape(partial(run, depths[0]), state)

    def stay(state: DepthState) -> tuple[DepthState, KeysValues]:
        return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    count, fresh = jnp.int32(0), []
    for depth in depths:
        everyone_left = jnp.all(state.exited)
        state, keys_values = lax.cond(everyone_left, stay, partial(run, depth), state)
        count += ~everyone_left
        fresh.append(keys_values)
    return count, state, fresh


def while_loop(
    run: RunLayer, depths: Sequence[int], state: DepthState
) -> tuple[Array, DepthState, list[KeysValues]]:
    """A `lax.while_loop` over depth whose body picks the layer by `lax.switch`; returns as `cond_loop`."""
    if not depths:
        return jnp.int32(0), state, []

    def some_row_goes_on(carry: tuple) -> Any:
        index, state, _ = carry
        return (index < len(depths)) & ~jnp.all(state.exited)

    def next_layer(carry: tuple) -> tuple:
        index, state, fresh = carry
        state, keys_values = lax.switch(index, [partial(run, depth) for depth in depths], state)
        write = partial(lax.dynamic_update_index_in_dim, index=index, axis=0)
        return index + 1, state, jax.tree.map(write, fresh, keys_values)

    _, shapes = jax.eval_shape(partial(run, depths[0]), state)
    fresh = jax.tree.map(lambda x: jnp.zeros((len(depths), *x.shape), x.dtype), shapes)
    count, state, (keys, values) = lax.while_loop(some_row_goes_on, next_layer, (jnp.int32(0), state, fresh))
    return count, state, list(zip(keys, values, strict=True))


def propagate_state(
    propagate: Propagate, depths: Sequence[int], count: Array, state: DepthState, fresh: list[KeysValues]
) -> list[KeysValues]:
    """Keys and values of all layers, those after the first `count` computed from the frozen states.

    One straight branch for each count: its products are independent of each other and run side by side.
    """

    def branch(ran: int, hidden: Array, fresh: list[KeysValues]) -> list[KeysValues]:
        return fresh[:ran] + [propagate(depth, hidden) for depth in depths[ran:]]

    branches = [partial(branch, ran) for ran in range(len(fresh) + 1)]
    return lax.switch(count, branches, state.hidden, fresh)


def run_together(
    layers: CachedDecoder, depths: Sequence[int], state: DepthState
) -> tuple[Array, DepthState, list[KeysValues]]:
    """Shallow-deep (FREE, section 3): all deeper layers, for this token and those that wait side by side, or none.

    They run where a row goes on, and at a block's end. What they then know of a token that left is what they
    would if it had not. Returns as `cond_loop`; where none ran, the blocks as they were.
    """

    def stay(state: DepthState) -> tuple[Array, DepthState, list[KeysValues]]:
        return jnp.int32(0), state, [layers.known(depth) for depth in depths]

    def go(state: DepthState) -> tuple[Array, DepthState, list[KeysValues]]:
        (hidden, before), blocks = lax.cond(layers.none_waits(depths[0]), alone, with_waiting, state.hidden)
        state = dataclasses.replace(
            state,
            hidden=jnp.where(state.exited[:, None], state.hidden, hidden),
            before=None if state.before is None else jnp.where(state.exited[:, None], state.before, before),
            exit_layer=jnp.where(state.exited, state.exit_layer, depths[-1]),
        )
        return jnp.int32(len(depths)), state, blocks

    def alone(hidden: Array) -> tuple[tuple[Array, Array], list[KeysValues]]:
        before, blocks = hidden, []
        for depth in depths:
            before = hidden
            hidden, block = layers.run(depth, hidden)
            blocks.append(block)
        return (hidden, before), blocks

    def with_waiting(hidden: Array) -> tuple[tuple[Array, Array], list[KeysValues]]:
        states = before = layers.waiting(hidden)
        blocks = []
        for depth in depths:
            before = states
            states, block = layers.run_block(depth, states)
            blocks.append(block)
        last = (lax.dynamic_index_in_dim(x, layers.column, axis=1, keepdims=False) for x in (states, before))
        return tuple(last), blocks

    return lax.cond(jnp.all(state.exited) & ~layers.block_ends, stay, go, state)


LAYER_LOOPS = {"cond": cond_loop, "while": while_loop}

FASTER_LAYER_LOOP = {"cpu": "cond"}
"""The faster loop of each backend, by measurement (docs/performance.md)."""


def choose_layer_loop(layer_loop: str) -> str:
    """Resolves "auto" for the default backend; "cond" where none was measured."""
    return FASTER_LAYER_LOOP.get(jax.default_backend(), "cond") if layer_loop == "auto" else layer_loop
