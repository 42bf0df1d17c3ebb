"""The self-attention cache, and the decoder layers that read it.

The cache of a layer is a ring of columns. Each step writes one column, the same in every row of the batch, and a
row attends to as many columns before it as its text has tokens. So rows whose texts began at different steps stand
side by side, and a row that begins a new text needs nothing cleared: its length becomes 0. T5 sees distances
between tokens, never positions, so the column that a token stands in does not matter.

For instance 6 columns at step 8, where row 0 has 5 tokens and row 1 has 2 ("." is not attended to):

    column    0   1   2   3   4   5
    written   6   7   8   3   4   5     step at which the column is written; column 2 belongs to this token
    row 0     x   x   x   x   x   x
    row 1     x   x   x   .   .   .

Columns are grouped in blocks of `policy.block_size`. It is 1 unless skipped layers run later (shallow-deep): then
the tokens of the current block wait in `exit_states`, and a layer that runs computes the block's missing keys and
values in one product. At the end of a block nothing waits.
"""

from __future__ import annotations

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

Block = Float[Array, "2 batch num_heads block d_kv"]
"""Keys and values of one layer, for the tokens of the current block."""


Columns = Float[Array, "depths 2 batch num_heads columns d_kv"] | list[KeysValues]
"""All columns of the ring. On a GPU one array, which one kernel writes. On CPU an array for each layer's keys and
one for its values: a part of a larger array would be copied for each product."""


@struct.dataclass
class KVCache:
    """Self-attention keys and values of a batch, and the bookkeeping of the ring."""

    columns: Columns  # keys and values of each layer that runs
    step: Int[Array, ""]  # steps taken so far
    lengths: Int[Array, " batch"]  # tokens of each row's text so far
    exit_states: Float[Array, "batch block d_model"]  # that the tokens of the current block exited with
    num_filled: Int[Array, " depths"]  # tokens of the current block whose keys and values each layer has


def num_columns(program: DecodeProgram) -> int:
    """Columns of the ring: whole blocks, enough that the current block overwrites no column still attended to."""
    block = program.policy.block_size
    return -(-(program.max_new_tokens + block - 1) // block) * block


def empty_cache(program: DecodeProgram, encoded: Encoded) -> KVCache:
    """The cache of a batch that has decoded nothing."""
    config, policy = program.config, program.policy
    batch = encoded.mask.shape[0]
    layer = jnp.zeros((batch, config.num_heads, num_columns(program), config.d_kv), encoded.cross[0][0].dtype)
    columns: Columns = [(layer, layer) for _ in range(policy.last_depth)]
    if backend() != "cpu":
        columns = jnp.zeros((policy.last_depth, 2, *layer.shape), layer.dtype)
    return KVCache(
        columns=columns,
        step=jnp.int32(0),
        lengths=jnp.zeros(batch, jnp.int32),
        exit_states=jnp.zeros((batch, policy.block_size, config.d_model), jnp.float32),
        num_filled=jnp.zeros(policy.last_depth, jnp.int32),
    )


class CachedDecoder:
    """The decoder layers at one step of the token loop. It reads the cache; `updated_cache` returns the next one.

    Args:
        program: model and policy.
        inputs: parameters and sources.
        cache: of the tokens before this one.
    """

    def __init__(self, program: DecodeProgram, inputs: DecodeInputs, cache: KVCache) -> None:
        self._config, self._params = program.config, inputs.params["decoder"]
        self._num_layers, self._block_size = program.policy.last_depth, program.policy.block_size
        self._columns = num_columns(program)
        self._cross, self._cross_bias = inputs.encoded.cross, padding_bias(inputs.encoded.mask)
        self._cache, self._stacked = cache, inputs.stacked
        self.column = cache.step % self._block_size  # of this token within its block
        self.block_ends = self.column == self._block_size - 1
        self._block_start = cache.step % self._columns - self.column  # of the block within the ring
        self._token_bias = self._biases(self.column[None])
        self._block_bias = self._biases(jnp.arange(self._block_size))

    def _biases(self, queries: Int[Array, " queries"]) -> dict[int, Float[Array, "batch heads queries columns"]]:
        """Score biases of queries at columns of the block, by the index of each layer that has its own."""
        columns = jnp.arange(self._columns)
        behind = self.column - queries  # this token's distance to each query
        # Steps from each query back to the token in each column; a later column of the block was written long ago.
        distance = (self._block_start + queries[:, None] - columns) % self._columns  # (queries, columns)
        lengths = self._cache.lengths[:, None, None] - behind[:, None]  # (batch, queries, 1)
        mask = jnp.where(distance <= lengths, 0.0, MASKED)[:, None]  # (batch, 1, queries, columns)
        biases = {}
        for index in range(self._num_layers):
            if has_relative_bias(self._config, index):
                table = self._params[f"layers_{index}"]["self_attention"]["relative_bias"]
                bias = distance_bias(table, distance, self._columns, self._config, bidirectional=False)
                biases[index] = bias + mask
        return biases

    def _apply(self, depth: int, method: str, *args: object) -> Any:
        index = depth - 1
        layer = DecoderLayer(self._config, has_relative_bias(self._config, index))
        return layer.apply({"params": self._params[f"layers_{index}"]}, *args, method=method)

    def run(
        self, depth: int, hidden: Float[Array, "batch d_model"]
    ) -> tuple[Float[Array, "batch d_model"], Block]:
        """Runs the layer at `depth` on this token.

        Returns:
            h_l, and the layer's block with this token's keys and values.
        """
        block = self.append(depth, hidden)
        hidden = self._attend(depth, hidden[:, None], block, self._token_bias)[:, 0]
        if backend() == "tpu":
            # Else the compiler takes 9 GB for 19 layers in a row, and more for more; so it takes 1 GB.
            hidden, block = lax.optimization_barrier((hidden, block))
        return hidden, block

    def append(self, depth: int, hidden: Float[Array, "batch d_model"]) -> Block:
        """The layer's block with this token's keys and values. Alone, without `run`, it is state propagation."""
        own = jnp.stack(self._apply(depth, "self_keys_values", hidden[:, None]))
        if self._block_size == 1:
            return own
        return lax.dynamic_update_slice_in_dim(self.block_so_far(depth), own, self.column, axis=3)

    @jax.named_scope("propagate")
    def propagate(self, depth: int, hidden: Float[Array, "batch d_model"]) -> list[Block]:
        """State propagation: the blocks of the layers after `depth`, all from the same h_e.

        Source: CALM (arXiv 2207.07061), section 3.
        """
        if self._stacked is None:
            return [self.append(deeper, hidden) for deeper in range(depth + 1, self._num_layers + 1)]
        keys_values = self._stacked.keys_values(depth, hidden, self._config)
        return list(keys_values)

    def block_so_far(self, depth: int) -> Block:
        """The layer's block as the cache has it, without this token."""
        keys, values = self._cache.columns[depth - 1]
        cut = partial(lax.dynamic_slice_in_dim, start_index=self._block_start, slice_size=self._block_size, axis=2)
        return jnp.stack([cut(keys), cut(values)])

    def nothing_waits(self, depth: int) -> Bool[Array, ""]:
        """Whether the layer at `depth` has the keys and values of all earlier tokens of the block."""
        return self._cache.num_filled[depth - 1] == self.column

    def block_states(self, hidden: Float[Array, "batch d_model"]) -> Float[Array, "batch block d_model"]:
        """The states that the block's tokens exited with, and this token's."""
        return lax.dynamic_update_slice_in_dim(self._cache.exit_states, hidden[:, None], self.column, axis=1)

    def run_block(
        self, depth: int, states: Float[Array, "batch block d_model"]
    ) -> tuple[Float[Array, "batch block d_model"], Block]:
        """Runs the layer at `depth` on the block's tokens side by side; each attends to those up to itself.

        Args:
            depth: of the layer.
            states: h_(l-1) of the block's tokens.

        Returns:
            h_l, and the layer's filled block.
        """
        own = jnp.stack(self._apply(depth, "self_keys_values", states))
        had = (jnp.arange(self._block_size) < self._cache.num_filled[depth - 1])[:, None]  # (block, 1)
        block = jnp.where(had, self.block_so_far(depth), own)
        return self._attend(depth, states, block, self._block_bias), block

    def _attend(
        self, depth: int, states: Array, block: Block, biases: dict[int, Array]
    ) -> Float[Array, "batch queries d_model"]:
        index = depth - 1
        bias = biases[index if index in biases else 0]
        cross = Segment(*self._cross[index], self._cross_bias)
        return self._apply(depth, "__call__", states, self._segments(index, block, bias), cross)

    def _segments(
        self, index: int, block: Block, bias: Float[Array, "batch heads queries columns"]
    ) -> tuple[Segment, ...]:
        """What self-attention reads: the ring, with the block in its place.

        The cache itself is written once a step, by `updated_cache`.
        """
        ring = self._cache.columns[index]
        behind = jnp.arange(self._columns) - self._block_start
        in_block = (behind >= 0) & (behind < self._block_size)  # (columns,)
        if isinstance(ring, jax.Array) and self._block_size == 1:
            # A select is fused into attention; a segment of its own would be two kernels more.
            placed = jnp.where(in_block[:, None], block, ring)  # (2, batch, num_heads, columns, d_kv)
            return (Segment(placed[0], placed[1], bias),)
        own_bias = lax.dynamic_slice_in_dim(bias, self._block_start, self._block_size, axis=3)
        past = Segment(ring[0], ring[1], jnp.where(in_block, MASKED, bias))
        return past, Segment(block[0], block[1], own_bias)

    @jax.named_scope("cache")
    def updated_cache(
        self, exit_state: Float[Array, "batch d_model"], num_ran: Int[Array, ""] | int, blocks: list[Block]
    ) -> KVCache:
        """The cache after this step.

        Args:
            exit_state: h_e of this token.
            num_ran: how many layers ran.
            blocks: of each layer, as `run`, `append` or `run_block` returned it.
        """
        cache = self._cache
        ran = jnp.arange(len(blocks)) < num_ran
        columns: Columns
        if isinstance(cache.columns, list):
            write = partial(lax.dynamic_update_slice_in_dim, start_index=self._block_start, axis=2)
            columns = jax.tree.map(write, cache.columns, [tuple(block) for block in blocks])
        else:
            new = jnp.stack(blocks)
            columns = lax.dynamic_update_slice_in_dim(cache.columns, new, self._block_start, axis=4)
        return KVCache(
            columns=columns,
            step=cache.step + 1,
            lengths=cache.lengths + 1,
            exit_states=self.block_states(exit_state),
            num_filled=jnp.where(self.block_ends, 0, jnp.where(ran, self.column + 1, cache.num_filled)),
        )
