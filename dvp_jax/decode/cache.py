"""The self-attention cache, and the decoder layers that read it.

A row writes at its own length: column `c` holds the keys and values of its token `c`. So rows of different lengths
stand side by side. A row that takes tokens back becomes shorter: no token attends to the columns after it.

Each step writes the last `policy.window` tokens of each row. The window is this token alone, unless skipped layers
run later (`dvp_jax.decode.deferred`): then it also holds the tokens that wait for them. The cache begins with
window - 1 columns that no token owns, so that the window never begins before the cache.

For instance a window of 3, and 8 columns, where row 0 has 5 tokens before this one, and row 1 has 2:

    row 0     .   .   0   1   2   3   4   5      the window: tokens 3, 4, and 5, which is this one
    row 1     .   .   0   1   2   -   -   -      the window: tokens 0, 1 and 2
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

from dvp_jax.decode.program import DecodeInputs, DecodeProgram, Encoded
from dvp_jax.t5.backend import backend
from dvp_jax.t5.layers import MASKED, DecoderLayer, KeysValues, Segment, distance_bias, padding_bias
from dvp_jax.t5.model import has_relative_bias

Block = Float[Array, "2 batch num_heads window d_kv"]
"""Keys and values of one layer, for the tokens of the window."""

Columns = Float[Array, "depths 2 batch num_heads columns d_kv"] | list[KeysValues]
"""All columns. On a GPU one array, which one kernel writes. On CPU an array for each layer's keys and one for its
values: a part of a larger array would be copied for each product."""


@struct.dataclass
class Waiting:
    """The tokens of the window that have not run all layers, oldest first; the last place is for the next token.

    A token never waits deeper than an older one: when it enters a layer, it takes the older ones along.
    """

    hidden: Float[Array, "batch window d_model"]  # h_l after the layers that each has run
    depths: Int[Array, "batch window"]  # l; L where nothing waits
    drafts: Int[Array, "batch window"]  # the token that each was read as


@struct.dataclass
class KVCache:
    """Self-attention keys and values of a batch."""

    columns: Columns  # keys and values of each layer that runs
    lengths: Int[Array, " batch"]  # tokens of each row's text so far
    waiting: Waiting | None  # None unless skipped layers run later
    recent: Int[Array, "batch recent"] | None  # likeliest ids where the full vocabulary was read last, for a guess


def empty_cache(program: DecodeProgram, encoded: Encoded) -> KVCache:
    """The cache of a batch that has decoded nothing."""
    config, policy = program.config, program.policy
    batch = encoded.mask.shape[0]
    num_columns = program.max_new_tokens + policy.window - 1
    layer = jnp.zeros((batch, config.num_heads, num_columns, config.d_kv), encoded.cross[0][0].dtype)
    columns: Columns = [(layer, layer) for _ in range(policy.last_depth)]
    if backend() != "cpu":
        columns = jnp.zeros((policy.last_depth, 2, *layer.shape), layer.dtype)
    zeros, waiting = jnp.zeros((batch, policy.window), jnp.int32), None
    if policy.runs_skipped_layers_later:
        hidden = jnp.zeros((*zeros.shape, config.d_model), jnp.float32)
        waiting = Waiting(hidden, zeros + policy.last_depth, zeros)
    recent = jnp.zeros((batch, policy.num_recent), jnp.int32) if policy.num_recent else None
    return KVCache(columns, zeros[:, 0], waiting, recent)


def restarted(program: DecodeProgram, cache: KVCache, is_new: Bool[Array, " batch"]) -> KVCache:
    """The cache with rows that begin a new text."""
    waiting = cache.waiting
    if waiting is not None:
        depths = jnp.where(is_new[:, None], program.policy.last_depth, waiting.depths)
        hidden = jnp.where(is_new[:, None, None], 0.0, waiting.hidden)
        waiting = dataclasses.replace(waiting, hidden=hidden, depths=depths)
    recent = None if cache.recent is None else jnp.where(is_new[:, None], 0, cache.recent)
    return KVCache(cache.columns, jnp.where(is_new, 0, cache.lengths), waiting, recent)


def cleared(columns: Columns, row: Int[Array, ""]) -> Columns:
    """The columns with zeros in one row. Those of an earlier text have no weight, but 0 times NaN would be NaN."""

    def clear(x: Array) -> Array:
        axis = x.ndim - 4
        zeros = jnp.zeros((*x.shape[:axis], *x.shape[axis + 1 :]), x.dtype)
        return lax.dynamic_update_index_in_dim(x, zeros, row, axis)

    return jax.tree.map(clear, columns)


def window_sizes(window: int) -> list[int]:
    """How many of the newest tokens may run side by side, the last of them all.

    On CPU one, half the window, or all: more rows take longer, and more sizes compile longer. On a GPU or TPU rows
    cost next to nothing beside a branch between sizes (docs/performance.md).
    """
    return sorted({1, max(1, window // 2), window}) if backend() == "cpu" else [window]


class CachedDecoder:
    """The decoder layers at one step of the token loop. It reads the cache; `updated_cache` returns the next one.

    Args:
        program: model and policy.
        inputs: parameters and sources.
        cache: of the tokens before this one.
    """

    def __init__(self, program: DecodeProgram, inputs: DecodeInputs, cache: KVCache) -> None:
        self._config, self._params = program.config, inputs.params["decoder"]
        self._num_layers, self._window = program.policy.last_depth, program.policy.window
        self._cross, self._cross_bias = inputs.encoded.cross, padding_bias(inputs.encoded.mask)
        self._cache, self._stacked = cache, inputs.stacked
        self._here = cache.lengths[:, None] + self._window - 1  # column of this token
        size = cache.columns[0][0].shape[-2]
        self._columns = jnp.arange(size)  # (columns,)
        self._token_bias = self._biases(self._here, self._columns <= self._here)
        self._window_bias = {size: self._window_biases(size) for size in window_sizes(self._window)}

    def _biases(
        self, queries: Int[Array, "batch queries"], visible: Bool[Array, "batch columns"]
    ) -> dict[int, Float[Array, "batch heads queries columns"]]:
        """Score biases of queries at given columns, by the index of each layer that has its own."""
        distance = queries[:, :, None] - self._columns  # (batch, queries, columns)
        is_token = self._columns >= self._window - 1
        mask = jnp.where(visible & is_token, 0.0, MASKED)[:, None, None]
        return {index: bias + mask for index, bias in self._distance_biases(distance).items()}

    def _window_biases(self, size: int) -> dict[int, tuple[Array, Array]]:
        """Score biases of the newest tokens on the columns before them, and on each other."""
        places = jnp.arange(size)
        first = self._here - size + 1
        past = self._biases(first + places, self._columns < first)
        behind = places[:, None] - places  # (queries, keys)
        is_token = first + places >= self._window - 1  # (batch, keys)
        mask = jnp.where((behind >= 0) & is_token[:, None], 0.0, MASKED)[:, None]  # (batch, 1, queries, keys)
        return {index: (past[index], bias + mask) for index, bias in self._distance_biases(behind[None]).items()}

    def _distance_biases(self, distance: Int[Array, "#batch queries keys"]) -> dict[int, Array]:
        tables = {
            index: self._params[f"layers_{index}"]["self_attention"]["relative_bias"]
            for index in range(self._num_layers)
            if has_relative_bias(self._config, index)
        }
        return {
            index: distance_bias(table, distance, len(self._columns), self._config, bidirectional=False)
            for index, table in tables.items()
        }

    def _apply(self, depth: int, method: str, *args: object) -> Any:
        index = depth - 1
        layer = DecoderLayer(self._config, has_relative_bias(self._config, index))
        return layer.apply({"params": self._params[f"layers_{index}"]}, *args, method=method)

    def run(
        self, depth: int, hidden: Float[Array, "batch d_model"]
    ) -> tuple[Float[Array, "batch d_model"], Float[Array, "2 batch num_heads 1 d_kv"]]:
        """Runs the layer at `depth` on this token.

        Returns:
            h_l, and this token's keys and values.
        """
        own = self.append(depth, hidden)
        bias = self._of_layer(self._token_bias, depth)
        cached = self._cache.columns[depth - 1]
        if isinstance(cached, jax.Array):
            # A select is fused into attention; a segment of its own would be two kernels more.
            is_here = (self._columns == self._here)[:, None, :, None]
            placed = jnp.where(is_here, own, cached)  # (2, batch, num_heads, columns, d_kv)
            segments: tuple[Segment, ...] = (Segment(placed[0], placed[1], bias),)
        else:
            past, itself = self._of_layer(self._window_bias[1], depth)
            segments = (Segment(*cached, past), Segment(own[0], own[1], itself))
        hidden = self._attend(depth, hidden[:, None], segments)[:, 0]
        if backend() == "tpu":
            # Else the compiler takes 9 GB for 19 layers in a row, and more for more; so it takes 1 GB.
            hidden, own = lax.optimization_barrier((hidden, own))
        return hidden, own

    def run_window(
        self, depth: int, states: Float[Array, "batch some d_model"], entering: Bool[Array, "batch some"]
    ) -> tuple[Float[Array, "batch some d_model"], Block]:
        """Runs the layer at `depth` on the newest tokens side by side; each attends to those up to itself.

        Args:
            depth: of the layer.
            states: h_(l-1) of the tokens that enter; of others, anything. As many as one of `window_sizes`.
            entering: tokens that run this layer. Older tokens have run it already.

        Returns:
            h_l of the tokens that enter, and the layer's keys and values of the window.
        """
        size, so_far = states.shape[1], self.so_far(depth)
        own = jnp.stack(self._apply(depth, "self_keys_values", states))
        block = jnp.where(entering[:, None, :, None], own, so_far[..., -size:, :])
        past, itself = self._of_layer(self._window_bias[size], depth)
        cached = self._cache.columns[depth - 1]
        segments = (Segment(cached[0], cached[1], past), Segment(block[0], block[1], itself))
        hidden = self._attend(depth, states, segments)
        return hidden, jnp.concatenate([so_far[..., :-size, :], block], axis=-2)

    def so_far(self, depth: int) -> Block:
        """The layer's keys and values of the window as the cache has them."""
        cached = self._cache.columns[depth - 1]
        return jnp.stack(
            [_read_window(part, self._cache.lengths, self._window) for part in (cached[0], cached[1])]
        )

    def append(
        self, depth: int, hidden: Float[Array, "batch d_model"]
    ) -> Float[Array, "2 batch num_heads 1 d_kv"]:
        """This token's keys and values at a layer. Alone, without `run`, it is state propagation."""
        return jnp.stack(self._apply(depth, "self_keys_values", hidden[:, None]))

    @jax.named_scope("propagate")
    def propagate(self, depth: int, hidden: Float[Array, "batch d_model"]) -> list[Array]:
        """State propagation: keys and values of the layers after `depth`, all from the same h_e.

        Source: CALM (arXiv 2207.07061), section 3.
        """
        if self._stacked is None:
            return [self.append(deeper, hidden) for deeper in range(depth + 1, self._num_layers + 1)]
        return list(self._stacked.keys_values(depth, hidden, self._config))

    def _of_layer(self, biases: dict[int, Any], depth: int) -> Any:
        """The biases of a layer: its own, or those of the first layer."""
        return biases.get(depth - 1, biases[0])

    def _attend(
        self, depth: int, states: Array, segments: tuple[Segment, ...]
    ) -> Float[Array, "batch queries d_model"]:
        cross = Segment(*self._cross[depth - 1], self._cross_bias)
        return self._apply(depth, "__call__", states, segments, cross)

    @jax.named_scope("cache")
    def updated_cache(
        self, blocks: list[Block], waiting: Waiting | None = None, recent: Int[Array, "batch recent"] | None = None
    ) -> KVCache:
        """The cache after this step, a token longer in every row. It is written here, once a step.

        Args:
            blocks: keys and values of the window in each layer.
            waiting: what waits after this step.
            recent: likeliest ids, for the next guess.
        """
        cache = self._cache
        columns: Columns
        if isinstance(cache.columns, list):
            write = partial(_write_window, starts=cache.lengths, batch_axis=0)
            columns = jax.tree.map(write, cache.columns, [tuple(block) for block in blocks])
        else:
            columns = _write_window(cache.columns, jnp.stack(blocks), cache.lengths, batch_axis=2)
        return KVCache(columns, cache.lengths + 1, waiting, recent)


def _write_window(columns: Array, block: Array, starts: Int[Array, " batch"], batch_axis: int) -> Array:
    """The columns (..., columns, d_kv) with each row's block written from the row's start on."""
    if len(starts) == 1:
        return lax.dynamic_update_slice_in_dim(columns, block, starts[0], axis=-2)
    write = partial(lax.dynamic_update_slice_in_dim, axis=-2)
    return jax.vmap(write, (batch_axis, batch_axis, 0), batch_axis)(columns, block, starts)


def _read_window(columns: Array, starts: Int[Array, " batch"], size: int) -> Array:
    """`size` columns of (batch, num_heads, columns, d_kv) from each row's start on."""
    if len(starts) == 1:
        return lax.dynamic_slice_in_dim(columns, starts[0], size, axis=2)
    return jax.vmap(lambda row, start: lax.dynamic_slice_in_dim(row, start, size, axis=1))(columns, starts)
