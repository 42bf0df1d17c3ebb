"""The k largest of each row, on one device or on a mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from dvp_jax.t5.backend import backend


def top_k(
    values: Float[Array, "batch size"], k: int, *, full_vocabulary: bool = False
) -> tuple[Float[Array, "batch k"], Int[Array, "batch k"]]:
    """`lax.top_k` of each row, descending; of equal values the one with the smaller index comes first.

    On a mesh XLA would gather all rows on every device. Instead each device takes the k largest of its own part,
    and the parts are merged: 2k numbers a device travel instead of a row.

    Args:
        values: one row for each batch row.
        k: how many.
        full_vocabulary: whether the columns are the vocabulary, which a mesh divides over its axis "model".

    Returns:
        The values and their indices.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        if backend() == "gpu" and _OWN_KERNEL < k <= _MOST_SORTED // 2 and values.shape[1] > _MOST_SORTED:
            return _top_k_by_blocks(values, k)
        # The barrier keeps XLA from turning a top-k whose columns are sliced apart into a sort of the row, which
        # is a hundred times slower.
        largest, indices = lax.optimization_barrier(lax.top_k(values, k))
        return largest, indices
    rows = "data" if len(values) % mesh.shape["data"] == 0 else None
    num_parts, axis = (mesh.shape["model"], "model") if full_vocabulary else (1, None)
    part_size = -(-values.shape[1] // num_parts)
    padding = ((0, 0), (0, part_size * num_parts - values.shape[1]))

    def merge_parts(values: Float[Array, "rows part_size"]) -> tuple[Array, Array]:
        largest, indices = _top_k_of_part(values, min(k, part_size))
        if axis is None:
            return largest, indices
        indices += part_size * lax.axis_index(axis)
        largest, indices = (lax.all_gather(x, axis, axis=1, tiled=True) for x in (largest, indices))
        # Parts stand in order, so that of equal values the smaller index still comes first.
        largest, order = _top_k_of_part(largest, k)
        return largest, jnp.take_along_axis(indices, order, axis=1)

    on_mesh = jax.shard_map(
        merge_parts, in_specs=PartitionSpec(rows, axis), out_specs=PartitionSpec(rows), check_vma=False
    )
    return on_mesh(jnp.pad(values, padding, constant_values=-jnp.inf))


_OWN_KERNEL = 16
"""Up to this k, XLA has a kernel of its own on a GPU. Beyond, it sorts the whole row."""
_MOST_SORTED = 8192
"""How many values to sort at once."""


def _top_k_by_blocks(
    values: Float[Array, "batch size"], k: int
) -> tuple[Float[Array, "batch k"], Int[Array, "batch k"]]:
    """The exact top k from the k blocks with the largest maxima: sorts of thousands instead of the whole row.

    Fewer than k blocks have a maximum above the k-th largest value. Among blocks whose maximum equals it, the ones
    with the smaller indices are chosen, and each holds at least one such value. So the chosen blocks hold the k
    largest values, and of equal values those with the smallest indices.
    """
    batch, size = values.shape
    block = _MOST_SORTED // k
    padded = jnp.pad(values, ((0, 0), (0, -size % block)), constant_values=-jnp.inf)
    blocks = padded.reshape(batch, -1, block)
    _, chosen = lax.top_k(jnp.max(blocks, axis=-1), k)
    chosen = jnp.sort(chosen, axis=-1)  # so that of equal values the smaller index still comes first
    candidates = jnp.take_along_axis(blocks, chosen[:, :, None], axis=1).reshape(batch, -1)
    largest, positions = lax.top_k(candidates, k)
    indices = jnp.take_along_axis(chosen, positions // block, axis=1) * block + positions % block
    return lax.optimization_barrier((largest, indices))


def _top_k_of_part(values: Array, k: int) -> tuple[Array, Array]:
    largest, indices = lax.top_k(values, k)
    # One barrier each: XLA's decomposition of a partitioned top-k crashes on one barrier for both.
    return lax.optimization_barrier(largest), lax.optimization_barrier(indices)
