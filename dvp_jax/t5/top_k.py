"""The k largest of each row, on one device or on a mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int


def top_k(
    values: Float[Array, "batch size"], k: int, *, whole: bool = False
) -> tuple[Float[Array, "batch k"], Int[Array, "batch k"]]:
    """`lax.top_k`: the k largest of each row, descending, and where they stand; of equal ones the first.

    On a mesh XLA would gather all rows on every device: so each device finds those of its own rows and, of values
    of the `whole` vocabulary, of its own part of them, from which the k largest are merged.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        # Behind a barrier, since XLA turns a top-k whose columns are sliced apart into a sort of the whole row, a
        # hundred times slower.
        largest, ids = lax.optimization_barrier(lax.top_k(values, k))
        return largest, ids
    rows = "data" if len(values) % mesh.shape["data"] == 0 else None
    parts, axis = (mesh.shape["model"], "model") if whole else (1, None)
    size = -(-values.shape[1] // parts)
    filling = ((0, 0), (0, size * parts - values.shape[1]))

    def of_part(values: Array) -> tuple[Array, Array]:
        largest, ids = _largest(values, min(k, size))
        if axis is None:
            return largest, ids
        ids += size * lax.axis_index(axis)
        largest, ids = (lax.all_gather(x, axis, axis=1, tiled=True) for x in (largest, ids))
        largest, places = _largest(largest, k)  # parts stand in order, so that ties still fall to the smaller id
        return largest, jnp.take_along_axis(ids, places, axis=1)

    spread = jax.shard_map(
        of_part, in_specs=PartitionSpec(rows, axis), out_specs=PartitionSpec(rows), check_vma=False
    )
    return spread(jnp.pad(values, filling, constant_values=-jnp.inf))


def _largest(values: Array, k: int) -> tuple[Array, Array]:
    largest, ids = lax.top_k(values, k)
    # One barrier each: XLA's decomposition of a partitioned top-k crashes on one for both.
    return lax.optimization_barrier(largest), lax.optimization_barrier(ids)
