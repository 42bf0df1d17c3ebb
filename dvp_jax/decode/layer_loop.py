"""Two interchangeable loops over the layers of one token: the heart of early exit.

Both run layers until every row has exited and then only propagate. `run` and `propagate` take a depth and the
state and return the state and the layer's new keys and values; a depth is a Python integer in both loops, so
either may treat depths differently. Weights and caches are closed over by the branches, never carried, and
so never copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.t5.layers import KeysValues


@struct.dataclass
class DepthState:
    """What travels from layer to layer while one token of every row is decoded."""

    hidden: Float[Array, "batch d_model"]  # h_l, frozen at h_e once the row has exited
    exited: Bool[Array, " batch"]  # rows that left, and rows whose text has ended
    exit_layer: Int[Array, " batch"]  # layers run so far; 0 where the text has ended
    token: Int[Array, " batch"]
    confidence: Float[Array, " batch"]


Layer = Callable[[int, DepthState], tuple[DepthState, KeysValues]]


def cond_loop(
    run: Layer, propagate: Layer, depths: Sequence[int], state: DepthState
) -> tuple[DepthState, list[KeysValues]]:
    """Unrolled: one `lax.cond` a layer."""
    fresh = []
    for depth in depths:
        state, keys_values = lax.cond(
            jnp.all(state.exited), partial(propagate, depth), partial(run, depth), state
        )
        fresh.append(keys_values)
    return state, fresh


def while_loop(
    run: Layer, propagate: Layer, depths: Sequence[int], state: DepthState
) -> tuple[DepthState, list[KeysValues]]:
    """A `lax.while_loop` over depth whose body picks the layer by `lax.switch`; then one over the rest."""
    if not depths:
        return state, []

    def apply(layer: Layer, carry: tuple) -> tuple:
        index, state, fresh = carry
        state, keys_values = lax.switch(index, [partial(layer, depth) for depth in depths], state)
        write = partial(lax.dynamic_update_index_in_dim, index=index, axis=0)
        return index + 1, state, jax.tree.map(write, fresh, keys_values)

    def some_row_goes_on(carry: tuple) -> Any:
        index, state, _ = carry
        return (index < len(depths)) & ~jnp.all(state.exited)

    _, shapes = jax.eval_shape(partial(propagate, depths[0]), state)
    fresh = jax.tree.map(lambda x: jnp.zeros((len(depths), *x.shape), x.dtype), shapes)
    carry = lax.while_loop(some_row_goes_on, partial(apply, run), (0, state, fresh))
    _, state, (keys, values) = lax.while_loop(
        lambda carry: carry[0] < len(depths), partial(apply, propagate), carry
    )
    return state, list(zip(keys, values, strict=True))


LAYER_LOOPS = {"cond": cond_loop, "while": while_loop}

FASTER_LAYER_LOOP = {"cpu": "cond"}
"""The faster loop of each backend, by measurement (docs/performance.md)."""


def choose_layer_loop(layer_loop: str) -> str:
    """Resolves "auto" for the default backend; "cond" where none was measured."""
    return FASTER_LAYER_LOOP.get(jax.default_backend(), "cond") if layer_loop == "auto" else layer_loop
