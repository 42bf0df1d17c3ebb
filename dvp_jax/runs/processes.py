"""Several processes that work on one run, over `jax.distributed`."""

from __future__ import annotations

import atexit
import collections
import dataclasses
import itertools
import json
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import traverse_util
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

Item = TypeVar("Item")

HEARTBEAT_TIMEOUT_S = 30
"""A process that gives no sign of life for this long counts as dead, and JAX aborts the others."""
_FAILURE_GRACE_S = 30
"""A process that fails waits this long for others that fail for the same reason."""
_SHUTDOWN_TIMEOUT_S = 35
"""JAX aborts the processes that have not failed this long after the first one failed."""
_YEAR_MS = 365 * 24 * 3600 * 1000

_barrier_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Process:
    """One process of a run.

    Attributes:
        index: from 0 to count - 1. Process 0 writes the results of the whole run.
        count: the number of processes.
        together: True if all processes do the same work at once, on a mesh of all their devices. False if each
            process does a part of the work.
    """

    index: int = 0
    count: int = 1
    together: bool = False

    @property
    def first(self) -> bool:
        """Whether this is process 0."""
        return self.index == 0

    @property
    def parts(self) -> int:
        """The number of parts that the work is divided into."""
        return 1 if self.together else self.count

    @property
    def writes(self) -> bool:
        """Whether this process writes its results. Of processes that work together only process 0 does."""
        return self.first or not self.together

    def part(self, items: Sequence[Item]) -> Sequence[Item]:
        """Returns the items that this process works on.

        Args:
            items: the same in every process.

        Returns:
            All items if the processes work together. Otherwise every count-th item from the index-th on, so that
            each item belongs to exactly one process.
        """
        return items if self.together else items[self.index :: self.count]

    def wait(self) -> None:
        """Waits until every process has called this as often as this one."""
        if self.count > 1:
            # `multihost_utils.sync_global_devices` gives up after 30 minutes on CPU. A part of an evaluation may
            # take longer.
            multihost.get_barrier_sync_fn()(key=f"dvp_jax/{next(_barrier_numbers)}", timeout_ms=_YEAR_MS)

    def agree(self, values: Mapping[str, Any]) -> None:
        """Checks that all processes have the same values. Every process must call this.

        Args:
            values: can be written as JSON.

        Raises:
            ValueError: a process has other values than process 0. The message names each field that differs, with
                both values, and is the same in every process.
        """
        if self.count == 1:
            return
        values_of_first, *values_of_others = _gather(values)
        for index, values_of_other in enumerate(values_of_others, start=1):
            if differing := differences(values_of_first, values_of_other):
                raise ValueError(
                    f"process {index} differs from process 0: "
                    + "; ".join(f"{name} is {value!r}, not {want!r}" for name, (want, value) in differing.items())
                )


ALONE = Process()
"""The only process of a run."""


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Compares two nested dictionaries.

    Returns:
        Both values of each field that differs, under its dotted name. A missing field counts as None.
    """
    left, right = (traverse_util.flatten_dict(dict(tree), keep_empty_nodes=True, sep=".") for tree in (one, other))
    return {
        name: (left.get(name), right.get(name))
        for name in sorted({*left, *right})
        if left.get(name) != right.get(name)
    }


def _gather(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the values of every process, in the order of their indices.

    Raises:
        ValueError: the processes have different numbers of devices, so that JAX cannot gather.
    """
    device_counts = collections.Counter(device.process_index for device in jax.devices())
    for index, device_count in device_counts.items():
        if device_count != device_counts[0]:
            raise ValueError(
                f"process {index} has {device_count} devices; allowed: as many as process 0, {device_counts[0]}"
            )
    text = np.frombuffer(json.dumps(values).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.int32(len(text)))  # [count]
    padded = np.pad(text, (0, int(lengths.max()) - len(text)))
    texts = multihost_utils.process_allgather(padded)  # [count, longest length]
    return [json.loads(row[:length].tobytes()) for row, length in zip(texts, lengths, strict=True)]


def current() -> Process:
    """Returns this process of those that have joined, or `ALONE` if it has not joined others."""
    return Process(jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else ALONE


def join(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes of a run. Must be called before JAX computes anything.

    A process that ends without `leave` has failed, and JAX stops the others within a minute.

    Args:
        coordinator: host:port where process 0 listens, or "auto" on a cluster that JAX knows (TPU pods, Slurm,
            Open MPI).
        num_processes: the number of processes of the run; None with "auto".
        process_id: the index of this process, from 0; None with "auto".

    Raises:
        ValueError: an argument is missing or impossible.
        OSError: the other processes did not come.
    """
    if coordinator != "auto":
        _check_place(coordinator, num_processes, process_id)
    try:
        jax.distributed.initialize(
            None if coordinator == "auto" else coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S,
            shutdown_timeout_seconds=_SHUTDOWN_TIMEOUT_S,
        )
    except RuntimeError as error:
        raise OSError(f"coordinator is {coordinator!r}: {error}") from None
    atexit.register(_fail)
    if current().count > 1 and jax.default_backend() == "cpu":
        # JAX's compile cache gains nothing here: process 0 alone writes it, under keys that the other processes,
        # whose topology differs, never look for. Process 0 was once seen to hang in it.
        jax.config.update("jax_enable_compilation_cache", False)


def _check_place(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Raises ValueError unless the three arguments of `join` name one process of a run."""
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit()):
        raise ValueError(f'coordinator is {coordinator!r}; allowed: host:port, or "auto"')
    if num_processes is None or num_processes < 1:
        raise ValueError(f"num_processes is {num_processes}; allowed: at least 1")
    if process_id is None or not 0 <= process_id < num_processes:
        raise ValueError(f"process_id is {process_id}; allowed: from 0 to {num_processes - 1}")


def leave() -> None:
    """Waits until all processes have finished their work, and disconnects from them."""
    if jax.distributed.is_initialized():
        current().wait()
        jax.distributed.shutdown()
        atexit.unregister(_fail)


def _fail() -> None:
    """Ends a process that did not call `leave`.

    JAX's shutdown waits for all processes. If they all fail for the same reason, for example bad input, each can
    print its own message and all end at once. If only this process fails, the grace period ends it, and JAX aborts
    the others.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    timer = threading.Timer(_FAILURE_GRACE_S, os._exit, [1])
    timer.daemon = True
    timer.start()
    jax.distributed.shutdown()
