"""The self-attention cache, and the decoder layers that read it.

The cache of a layer is a ring of columns. Each step writes one column, the same in every row of the batch, and a
row attends to as many columns before it as its text has tokens. So rows whose texts began at different steps stand
side by side, and a row that begins a new text needs nothing cleared: its length becomes 0. T5 sees distances
between tokens, never positions, so the column that a token stands in does not matter.

For instance 6 columns at step 8, where row 0 has 5 tokens and row 1 has 2 ("." is not attended to):

    column    0   1   2   3   4   5
    written   6   7   2   3   4   5     step at which the column was written; column 2 is overwritten now
    row 0     x   x   .   x   x   x
    row 1     x   x   .   .   .   .

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
from dvp_jax.t5.layers import MASKED, DecoderLayer, KeysValues, Segment, padding_bias, relative_bias
from dvp_jax.t5.model import has_relative_bias


@struct.dataclass
class KVCache:
    """Self-attention keys and values of a batch, and the bookkeeping of the ring."""

    layers: list[KeysValues]  # of each layer that runs: (batch, num_heads, columns, d_kv) each
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
    shape = (batch, config.num_heads, num_columns(program), config.d_kv)
    zeros = jnp.zeros(shape, encoded.cross[0][0].dtype)
    return KVCache(
        layers=[(zeros, zeros) for _ in range(policy.last_depth)],
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
        self._cache = cache
        self.column = cache.step % self._block_size  # of this token within its block
        self.block_ends = self.column == self._block_size - 1
        self._block_start = cache.step % self._columns - self.column  # of the block within the ring
        self._token_biases = self._biases(self.column[None])
        self._block_biases = self._biases(jnp.arange(self._block_size))

    def _biases(self, queries: Int[Array, " queries"]) -> dict[int, tuple[Array, Array]]:
        """Score biases of queries at columns of the block, by the index of each layer that has its own.

        Returns:
            Biases to the ring, (batch, num_heads, queries, columns), and to the block, (batch, num_heads, queries,
            block), each with `MASKED` where a query may not attend.
        """
        lengths = self._cache.lengths[:, None]
        steps_ago = (self._cache.step - 1 - jnp.arange(self._columns)) % self._columns + 1  # of each column
        behind = self.column - jnp.arange(self._block_size)  # of each column of the block, negative for later ones
        in_ring = (steps_ago > self.column) & (steps_ago <= lengths)  # (batch, columns)
        ring_mask = jnp.where(in_ring, 0.0, MASKED)[:, None, None]
        later = behind[None] < (self.column - queries)[:, None]  # (queries, block)
        hidden = later[None, None] | (behind > lengths)[:, None, None]  # (batch, 1, queries, block)
        block_mask = jnp.where(hidden, MASKED, 0.0)
        biases = {}
        for index in range(self._num_layers):
            if has_relative_bias(self._config, index):
                bias = partial(
                    relative_bias,
                    self._params[f"layers_{index}"]["self_attention"]["relative_bias"],
                    queries - self.column,
                    max_length=self._columns + 1,
                    config=self._config,
                    bidirectional=False,
                )
                biases[index] = bias(-steps_ago) + ring_mask, bias(-behind) + block_mask
        return biases

    def _apply(self, depth: int, method: str, *args: object) -> Any:
        index = depth - 1
        layer = DecoderLayer(self._config, has_relative_bias(self._config, index))
        return layer.apply({"params": self._params[f"layers_{index}"]}, *args, method=method)

    def run(self, depth: int, hidden: Float[Array, "batch d_model"]) -> tuple[Array, KeysValues]:
        """Runs the layer at `depth` on this token.

        Returns:
            h_l, (batch, d_model), and the layer's block with this token's keys and values.
        """
        block = self.append(depth, hidden)
        return self._attend(depth, hidden[:, None], block, self._token_biases)[:, 0], block

    def append(self, depth: int, hidden: Float[Array, "batch d_model"]) -> KeysValues:
        """The layer's block with this token's keys and values. Alone, without `run`, it is state propagation."""
        own = self._apply(depth, "self_keys_values", hidden[:, None])
        if self._block_size == 1:
            return own
        write = partial(lax.dynamic_update_slice_in_dim, start_index=self.column, axis=2)
        return jax.tree.map(write, self.block_so_far(depth), own)

    def block_so_far(self, depth: int) -> KeysValues:
        """The layer's block as the cache has it, without this token."""
        cut = partial(lax.dynamic_slice_in_dim, start_index=self._block_start, slice_size=self._block_size, axis=2)
        return jax.tree.map(cut, self._cache.layers[depth - 1])

    def nothing_waits(self, depth: int) -> Bool[Array, ""]:
        """Whether the layer at `depth` has the keys and values of all earlier tokens of the block."""
        return self._cache.num_filled[depth - 1] == self.column

    def block_states(self, hidden: Float[Array, "batch d_model"]) -> Float[Array, "batch block d_model"]:
        """The states that the block's tokens exited with, and this token's."""
        return lax.dynamic_update_slice_in_dim(self._cache.exit_states, hidden[:, None], self.column, axis=1)

    def run_block(self, depth: int, states: Float[Array, "batch block d_model"]) -> tuple[Array, KeysValues]:
        """Runs the layer at `depth` on the block's tokens side by side; each attends to those up to itself.

        Args:
            depth: of the layer.
            states: h_(l-1) of the block's tokens.

        Returns:
            h_l, (batch, block, d_model), and the layer's filled block.
        """
        own = self._apply(depth, "self_keys_values", states)
        had = (jnp.arange(self._block_size) < self._cache.num_filled[depth - 1])[:, None]  # (block, 1)
        block = jax.tree.map(partial(jnp.where, had), self.block_so_far(depth), own)
        return self._attend(depth, states, block, self._block_biases), block

    def _attend(
        self, depth: int, states: Array, block: KeysValues, biases: dict[int, tuple[Array, Array]]
    ) -> Float[Array, "batch queries d_model"]:
        index = depth - 1
        ring_bias, block_bias = biases[index if index in biases else 0]
        segments = (Segment(*self._cache.layers[index], ring_bias), Segment(*block, block_bias))
        return self._apply(depth, "__call__", states, segments, Segment(*self._cross[index], self._cross_bias))

    def updated_cache(
        self, exit_state: Float[Array, "batch d_model"], num_ran: Int[Array, ""] | int, blocks: list[KeysValues]
    ) -> KVCache:
        """The cache after this step.

        Args:
            exit_state: h_e of this token.
            num_ran: how many layers ran.
            blocks: of each layer, as `run`, `append` or `run_block` returned it.
        """
        cache = self._cache
        ran = jnp.arange(len(blocks)) < num_ran
        write = partial(lax.dynamic_update_slice_in_dim, start_index=self._block_start, axis=2)
        return KVCache(
            layers=jax.tree.map(write, cache.layers, blocks),
            step=cache.step + 1,
            lengths=cache.lengths + 1,
            exit_states=self.block_states(exit_state),
            num_filled=jnp.where(self.block_ends, 0, jnp.where(ran, self.column + 1, cache.num_filled)),
        )
