"""The memory bandwidth that this machine was measured to have."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np


def num_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read_bandwidth(megabytes: int | None = None, repeats: int = 7) -> float:
    """Measures how fast the device reads memory, by summing a large array.

    Args:
        megabytes: size of the array, far larger than the device's caches. None is 1024 on a CPU, and 4096
            elsewhere, so that starting the sum takes a small part of its time.
        repeats: how often the array is summed; the fastest sum counts.

    Returns:
        Bytes per second.
    """
    if jax.default_backend() == "cpu":
        return _cpu_bandwidth(megabytes or 1024, repeats)
    array = jnp.ones((megabytes or 4096) * 2**20 // 4, jnp.float32)
    total = jax.jit(jnp.sum)
    best = 0.0
    for _ in range(repeats + 1):  # the first call compiles
        start = time.perf_counter()
        total(array).block_until_ready()
        best = max(best, array.nbytes / (time.perf_counter() - start))
    return best


def _cpu_bandwidth(megabytes: int, repeats: int) -> float:
    # One array and one thread for each core: NumPy's sum runs on one core and releases the interpreter's lock.
    cores = num_cores()
    parts = [np.ones(megabytes * 2**20 // 4 // cores, np.float32) for _ in range(cores)]
    num_bytes = sum(part.nbytes for part in parts)
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(np.sum, parts))
            best = max(best, num_bytes / (time.perf_counter() - start))
    return best
