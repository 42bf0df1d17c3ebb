"""What a text remembers between its tokens: self-attention keys and values, and the layers that read them.

The caches are rings: each step writes one column, the same in every row, and a row attends to as many columns
before it as its text has tokens. So rows of different age stand side by side, and a row that begins anew needs
nothing cleared. T5 sees distances only, never positions.

Tokens that left early owe keys and values to the layers that they skipped (state propagation). Those may wait:
the columns are written in blocks of `window`, a layer that runs first catches up with the tokens of the block that
wait for it, all in one product, and at a block's end nothing waits any more. With a window of 1 nothing ever does.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from dvp_jax.exits.policy import ExitPolicy
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.layers import MASKED, DecoderLayer, KeysValues, Segment, padding_bias, relative_bias
from dvp_jax.t5.model import Params, has_relative_bias


@dataclasses.dataclass(frozen=True)
class DecodeProgram:
    """All that decides the compiled decode program, beside the shapes of its arguments."""

    config: T5Config
    policy: ExitPolicy
    max_new_tokens: int
    layer_loop: str
    window: int = 1

    @property
    def columns(self) -> int:
        """Of the ring: whole blocks, so that no column a text still sees lies in the block being written."""
        return -(-(self.max_new_tokens + self.window - 1) // self.window) * self.window


@struct.dataclass
class Encoded:
    """What the decoder needs of the sources: computed once per request."""

    cross: list[KeysValues]  # cross-attention keys and values of each decoder layer
    mask: Bool[Array, "batch source"]
    active: Bool[Array, " batch"]  # False in rows that only fill up the batch


@struct.dataclass
class KVCache:
    """The self-attention memory of a batch."""

    caches: list[KeysValues]  # of each layer that runs: (batch, num_heads, columns, d_kv), an array each
    step: Int[Array, ""]  # taken so far
    age: Int[Array, " batch"]  # tokens of each row's text so far
    states: Float[Array, "batch window d_model"]  # that the tokens of the block in progress left with
    done: Int[Array, " depths"]  # tokens of that block of which each layer has keys and values


def empty_cache(structure: DecodeProgram, encoded: Encoded) -> KVCache:
    """The memory of a batch that has decoded nothing."""
    config, depths = structure.config, structure.policy.last_depth
    batch = encoded.mask.shape[0]
    cache = jnp.zeros((batch, config.num_heads, structure.columns, config.d_kv), encoded.cross[0][0].dtype)
    return KVCache(
        caches=[(cache, cache) for _ in range(depths)],
        step=jnp.int32(0),
        age=jnp.zeros(batch, jnp.int32),
        states=jnp.zeros((batch, structure.window, config.d_model), jnp.float32),
        done=jnp.zeros(depths, jnp.int32),
    )


class CachedDecoder:
    """The decoder's layers at one step: depth and states in, states and the layer's block of keys and values out.

    Args:
        structure: model and ring.
        params: of the model.
        encoded: the sources.
        memory: read, never written; `remember` returns the next.
    """

    def __init__(self, structure: DecodeProgram, params: Params, encoded: Encoded, memory: KVCache) -> None:
        self._config, self._params = structure.config, params["decoder"]
        self._structure, self._cross, self._memory = structure, encoded.cross, memory
        self._padding = padding_bias(encoded.mask)
        self.column = memory.step % structure.window  # of this token in its block
        self.block_ends = self.column == structure.window - 1
        self._start = memory.step % structure.columns - self.column  # of the block in the ring
        present, block = self.column[None], jnp.arange(structure.window)
        self._token_biases, self._block_biases = self._biases(present), self._biases(block)

    def _biases(self, queries: Int[Array, " queries"]) -> dict[int, tuple[Array, Array]]:
        """Score biases, of layers that have their own: of columns of the block to the past, and to the block."""
        columns, window, age = self._structure.columns, self._structure.window, self._memory.age[:, None]
        ago = (self._memory.step - 1 - jnp.arange(columns)) % columns + 1  # steps since each column was written
        behind = self.column - jnp.arange(window)  # this token
        past = _hide(~((ago > self.column) & (ago <= age)))[:, None, None]
        later = behind[None] < (self.column - queries)[:, None]
        block = _hide(later[None, None] | (behind > age)[:, None, None])
        positions = queries - self.column
        found = {}
        for index in range(self._structure.policy.last_depth):
            if has_relative_bias(self._config, index):
                table = self._params[f"layers_{index}"]["self_attention"]["relative_bias"]
                bias = partial(relative_bias, table, positions, max_length=columns + 1, config=self._config)
                found[index] = bias(-ago, bidirectional=False) + past, bias(-behind, bidirectional=False) + block
        return found

    def _apply(self, depth: int, method: str, *args: object) -> Any:
        index = depth - 1
        layer = DecoderLayer(self._config, has_relative_bias(self._config, index))
        return layer.apply({"params": self._params[f"layers_{index}"]}, *args, method=method)

    def known(self, depth: int) -> KeysValues:
        """The block as the layer at `depth` has it so far."""
        size = self._structure.window
        return jax.tree.map(
            lambda cache: lax.dynamic_slice_in_dim(cache, self._start, size, axis=2),
            self._memory.caches[depth - 1],
        )

    def waiting(self, hidden: Float[Array, "batch d_model"]) -> Float[Array, "batch window d_model"]:
        """The states that enter a layer of the tokens of the block: those that they left with, and this one's."""
        return lax.dynamic_update_slice_in_dim(self._memory.states, hidden[:, None], self.column, axis=1)

    def caught_up(self, depth: int, states: Float[Array, "batch window d_model"]) -> KeysValues:
        """The block with keys and values of all its tokens so far; of the tokens that waited, from `states`."""
        mine: KeysValues = self._apply(depth, "self_keys_values", states)
        if self._structure.window == 1:
            return mine
        had = (jnp.arange(self._structure.window) < self._memory.done[depth - 1])[:, None]
        return jax.tree.map(partial(jnp.where, had), self.known(depth), mine)

    def with_this(self, depth: int, hidden: Float[Array, "batch d_model"]) -> KeysValues:
        """The block with this token's keys and values added: of a layer that no token waits for."""
        mine = self._apply(depth, "self_keys_values", hidden[:, None])
        if self._structure.window == 1:
            return mine
        add = partial(lax.dynamic_update_slice_in_dim, start_index=self.column, axis=2)
        return jax.tree.map(add, self.known(depth), mine)

    def none_waits(self, depth: int) -> Bool[Array, ""]:
        """Whether the layer at `depth` has all tokens of the block before this one."""
        return self._memory.done[depth - 1] == self.column

    def run(self, depth: int, hidden: Float[Array, "batch d_model"]) -> tuple[Array, KeysValues]:
        """The layer at `depth` on this token; first it catches up with the tokens that wait for it."""

        def catch_up(hidden: Array) -> KeysValues:
            return self.caught_up(depth, self.waiting(hidden))

        policy = self._structure.policy
        if self._structure.window == 1 or depth <= policy.first_exit or policy.all_or_none:
            block = self.with_this(depth, hidden)
        else:
            block = lax.cond(self.none_waits(depth), partial(self.with_this, depth), catch_up, hidden)
        return self._attend(depth, hidden[:, None], block, self._token_biases)[:, 0], block

    def run_block(self, depth: int, states: Float[Array, "batch window d_model"]) -> tuple[Array, KeysValues]:
        """The layer at `depth` on the tokens of the block side by side, each attending to those up to itself."""
        block = self.caught_up(depth, states)
        return self._attend(depth, states, block, self._block_biases), block

    def _attend(
        self, depth: int, states: Array, block: KeysValues, biases: dict[int, tuple[Array, Array]]
    ) -> Array:
        index = depth - 1
        past, within = biases[index if index in biases else 0]
        segments = (Segment(*self._memory.caches[index], past), Segment(*block, within))
        return self._apply(depth, "__call__", states, segments, Segment(*self._cross[index], self._padding))

    def propagate(self, depth: int, hidden: Float[Array, "batch d_model"]) -> KeysValues:
        """State propagation to a layer that did not run: at the block's end, else its tokens wait."""
        if self._structure.window == 1:
            return self.with_this(depth, hidden)
        states = self.waiting(hidden)
        known = self.known(depth)
        return lax.cond(self.block_ends, partial(self.caught_up, depth), lambda states: known, states)

    def remember(
        self, hidden: Float[Array, "batch d_model"], ran: Int[Array, ""] | int, blocks: list[KeysValues]
    ) -> KVCache:
        """The memory after this step.

        Args:
            hidden: what this token left with.
            ran: how many layers ran, or caught up otherwise.
            blocks: of each layer.
        """
        memory = self._memory
        caught_up = jnp.arange(len(blocks)) < ran
        write = partial(lax.dynamic_update_slice_in_dim, start_index=self._start, axis=2)
        return KVCache(
            caches=jax.tree.map(write, memory.caches, blocks),
            step=memory.step + 1,
            age=memory.age + 1,
            states=self.waiting(hidden),
            done=jnp.where(self.block_ends, 0, jnp.where(caught_up, self.column + 1, memory.done)),
        )


def _hide(where: Bool[Array, "*shape"]) -> Float[Array, "*shape"]:
    return jnp.where(where, MASKED, 0.0)
