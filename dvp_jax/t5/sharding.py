"""Where numbers live on a mesh of devices: requests over "data"; heads, feed-forward and vocabulary over "model".

The table below is the only place that names a parameter's axes. Nothing else is told: `jax.jit` partitions the
programs by where their arguments are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import DictKey, KeyPath
from jaxtyping import PyTree

from dvp_jax.t5.config import T5Config

AXES = ("data", "model")

# As XLA writes them, without a None at the end: else the result of a training step would seem to live elsewhere
# than what went in, and the next step be compiled anew.
_ROWS, _COLUMNS, _WHOLE = PartitionSpec("model"), PartitionSpec(None, "model"), PartitionSpec()

PARAMETER_AXES = {
    # Vocabulary: (V, d_model).
    "shared": _ROWS,
    "lm_head": _ROWS,
    # Heads: (num_heads * d_kv, d_model), its transpose, and (num_buckets, num_heads).
    "query": _ROWS,
    "key": _ROWS,
    "value": _ROWS,
    "output": _COLUMNS,
    "relative_bias": _COLUMNS,
    # Feed-forward: (d_ff, d_model), and its transpose.
    "wi": _ROWS,
    "wi_linear": _ROWS,
    "wo": _COLUMNS,
    # Norms, and the meta classifier.
    "scale": _WHOLE,
    "meta": _WHOLE,
}
"""Mesh axes of each parameter, by the last key of its path."""

Tree = TypeVar("Tree")


def make_mesh(sizes: Sequence[int] | None, *, all_processes: bool = False) -> Mesh | None:
    """The mesh of a launcher's setting.

    Args:
        sizes: of the axes "data" and "model"; None for no mesh.
        all_processes: over the devices of all of several processes, which must be taken all; without sizes as the
            axis "data". Else a mesh that this process's own devices can hold is of them, and only a larger one of
            those of all.

    Raises:
        ValueError: not two sizes of at least 1, more devices than there are, or of those of several processes
            not all.
    """
    own, processes = len(jax.local_devices()), jax.process_count()
    if sizes is None and all_processes and processes > 1:
        sizes = len(jax.devices()), 1
    if sizes is None:
        return None
    sizes = tuple(sizes)
    if len(sizes) != 2 or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(f"mesh is {sizes}; allowed: two integers of at least 1, the sizes of data and model")
    count = math.prod(sizes)
    together = processes > 1 and (all_processes or count > own)
    devices = jax.devices() if together else jax.local_devices()
    if count > len(devices) or (together and count < len(devices)):
        allowed = f"all {len(devices)} of {processes} processes" if together else f"at most the {own} here"
        if together and not all_processes:
            allowed += f", or at most the {own} of each"
        raise ValueError(f"mesh is {sizes}, {count} devices; allowed: {allowed}")
    return jax.make_mesh(sizes, AXES, (AxisType.Auto,) * 2, devices=devices[:count])


def check_mesh(config: T5Config, mesh: Mesh) -> Mesh:
    """The mesh, left to `jax.jit`'s own partitioning.

    Raises:
        ValueError: it lacks an axis, or its model axis does not divide what it cuts.
    """
    if not set(AXES) <= set(mesh.axis_names):
        raise ValueError(f"mesh has the axes {', '.join(mesh.axis_names)}; allowed: {' and '.join(AXES)}")
    cuts = {"num_heads": config.num_heads, "d_ff": config.d_ff}
    size, most = mesh.shape["model"], math.gcd(*cuts.values())
    if most % size:
        wrong = ", ".join(f"{name} {value}" for name, value in cuts.items() if value % size)
        divisors = ", ".join(str(n) for n in range(1, most + 1) if most % n == 0)
        raise ValueError(f"mesh has {size} devices along model, which do not divide {wrong}; allowed: {divisors}")
    return Mesh(mesh.devices, mesh.axis_names, (AxisType.Auto,) * len(mesh.axis_names))


def using(mesh: Mesh | None) -> contextlib.AbstractContextManager[object]:
    """Tells the programs traced within which mesh they are for; without one does nothing."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def pad_vocabulary(config: T5Config, mesh: Mesh) -> T5Config:
    """The config with as many rows of embedding and unembedding as the model axis divides."""
    return dataclasses.replace(config, vocab_padding=-config.vocab_size % mesh.shape["model"])


def shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """Where each parameter lives, or each part of an optimiser's state: beside its parameter, if a matrix as well.

    Args:
        mesh: from `check_mesh`.
        tree: parameters, or a state that holds trees of them; arrays or their shapes.
    """

    def of(path: KeyPath, leaf: jax.Array) -> NamedSharding:
        names = [key.key for key in path if isinstance(key, DictKey)]
        return NamedSharding(mesh, PARAMETER_AXES[names[-1]] if names and leaf.ndim == 2 else _WHOLE)

    return jax.tree_util.tree_map_with_path(of, tree)


def place(mesh: Mesh | None, tree: Tree) -> Tree:
    """Parameters, or a state that holds trees of them, in their shards; without a mesh as they are."""
    return tree if mesh is None else jax.tree.map(_put, tree, shardings(mesh, tree))


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    """An array that each process holds whole, each device's part onto it."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    whole = np.asarray(x)
    return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])


def gathered(x: jax.Array | np.ndarray) -> np.ndarray:
    """All of an array in this process's memory; where others hold parts of it, all of them must ask."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def several_processes(mesh: Mesh | None) -> bool:
    """Whether a mesh is of devices of several processes, which then must all do the same at once."""
    return mesh is not None and mesh.is_multi_process


def rows_over(mesh: Mesh | None, rows: int) -> int:
    """As many rows or more, so that the data axis divides them."""
    data = 1 if mesh is None else mesh.shape["data"]
    return -(-rows // data) * data


def place_rows(mesh: Mesh | None, tree: Any) -> Any:
    """Arrays of a batch on the devices, their rows cut along the data axis, which divides them."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    rows = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda x: _put(x, rows), tree)
