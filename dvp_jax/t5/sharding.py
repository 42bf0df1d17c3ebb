"""How arrays are divided over a mesh of devices.

Batch rows are divided over the axis "data"; heads, feed-forward and vocabulary over the axis "model".
`PARAMETER_AXES` is the only place that names the axes of a parameter. `jax.jit` partitions the programs by the
sharding of their arguments.
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

# Without a None at the end, as XLA writes them. With one, the result of a training step would seem to be sharded
# differently from its argument, and the next step would be compiled again.
_ROWS, _COLUMNS, _REPLICATED = PartitionSpec("model"), PartitionSpec(None, "model"), PartitionSpec()

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
    # Norms, and the exit classifier.
    "scale": _REPLICATED,
    "meta": _REPLICATED,
}
"""Mesh axes of each parameter, by the last key of its path."""

Tree = TypeVar("Tree")


def make_mesh(sizes: Sequence[int] | None, *, all_processes: bool = False) -> Mesh | None:
    """Makes the mesh that a launcher's setting asks for.

    If a mesh needs more devices than one process has, all processes form one mesh. It must then use all devices.

    Args:
        sizes: of the axes "data" and "model"; None for no mesh.
        all_processes: form one mesh of all processes even if this process has enough devices. If `sizes` is None,
            the axis "data" gets all devices.

    Returns:
        The mesh; None on one process without sizes.

    Raises:
        ValueError: not two sizes of at least 1; more devices than there are; a mesh of several processes that does
            not use all of their devices.
    """
    num_local, num_processes = len(jax.local_devices()), jax.process_count()
    if sizes is None and all_processes and num_processes > 1:
        sizes = len(jax.devices()), 1
    if sizes is None:
        return None
    sizes = tuple(sizes)
    if len(sizes) != 2 or not all(isinstance(size, int) and size >= 1 for size in sizes):
        raise ValueError(f"mesh is {sizes}; allowed: two integers of at least 1, the sizes of data and model")
    count = math.prod(sizes)
    together = num_processes > 1 and (all_processes or count > num_local)
    devices = jax.devices() if together else jax.local_devices()
    if count > len(devices) or (together and count < len(devices)):
        allowed = (
            f"all {len(devices)} of {num_processes} processes" if together else f"at most the {num_local} here"
        )
        if together and not all_processes:
            allowed += f", or at most the {num_local} of each"
        raise ValueError(f"mesh is {sizes}, {count} devices; allowed: {allowed}")
    return jax.make_mesh(sizes, AXES, (AxisType.Auto,) * 2, devices=devices[:count])


def check_mesh(config: T5Config, mesh: Mesh) -> Mesh:
    """Checks that a mesh fits a model.

    Returns:
        The same mesh with axes that `jax.jit` partitions automatically.

    Raises:
        ValueError: the mesh lacks an axis, or the size of "model" does not divide heads or feed-forward.
    """
    if not set(AXES) <= set(mesh.axis_names):
        raise ValueError(f"mesh has the axes {', '.join(mesh.axis_names)}; allowed: {' and '.join(AXES)}")
    divided = {"num_heads": config.num_heads, "d_ff": config.d_ff}
    size, largest = mesh.shape["model"], math.gcd(*divided.values())
    if largest % size:
        wrong = ", ".join(f"{name} {value}" for name, value in divided.items() if value % size)
        divisors = ", ".join(str(n) for n in range(1, largest + 1) if largest % n == 0)
        raise ValueError(f"mesh has {size} devices along model, which do not divide {wrong}; allowed: {divisors}")
    return Mesh(mesh.devices, mesh.axis_names, (AxisType.Auto,) * len(mesh.axis_names))


def use_mesh(mesh: Mesh | None) -> contextlib.AbstractContextManager[object]:
    """A context in which traced programs are for this mesh; it does nothing if there is none."""
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def pad_vocabulary(config: T5Config, mesh: Mesh) -> T5Config:
    """The config with enough rows of padding that the axis "model" divides the vocabulary."""
    return dataclasses.replace(config, vocab_padding=-config.vocab_size % mesh.shape["model"])


def shardings(mesh: Mesh, tree: PyTree) -> PyTree:
    """The sharding of each parameter, or of each part of an optimiser's state.

    A matrix in the optimiser's state is divided as its parameter is. All that is no matrix is on every device.

    Args:
        mesh: from `check_mesh`.
        tree: parameters, or a state that contains trees of them; arrays or their shapes.
    """

    def leaf_sharding(path: KeyPath, leaf: jax.Array) -> NamedSharding:
        names = [key.key for key in path if isinstance(key, DictKey)]
        return NamedSharding(mesh, PARAMETER_AXES[names[-1]] if names and leaf.ndim == 2 else _REPLICATED)

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def place(mesh: Mesh | None, tree: Tree) -> Tree:
    """Puts parameters, or a state that contains trees of them, on a mesh. Without a mesh they stay as they are."""
    return tree if mesh is None else jax.tree.map(_put, tree, shardings(mesh, tree))


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array, which each process has in full, on the devices of a sharding."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    full = np.asarray(x)
    return jax.make_array_from_callback(full.shape, sharding, lambda index: full[index])


def to_host(x: jax.Array | np.ndarray) -> np.ndarray:
    """The full array in this process's memory. If several processes hold parts of it, all of them must call it."""
    if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
        return multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def spans_processes(mesh: Mesh | None) -> bool:
    """Whether a mesh has devices of several processes. These must then all make the same calls."""
    return mesh is not None and mesh.is_multi_process


def round_up_rows(mesh: Mesh | None, rows: int) -> int:
    """The number of rows, rounded up so that the axis "data" divides it."""
    data = 1 if mesh is None else mesh.shape["data"]
    return -(-rows // data) * data


def place_rows(mesh: Mesh | None, tree: Any) -> Any:
    """Puts the arrays of a batch on the devices, their rows divided over the axis "data".

    Args:
        mesh: None for the default device.
        tree: arrays whose number of rows the axis "data" divides.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.tree.map(lambda x: _put(x, sharding), tree)
