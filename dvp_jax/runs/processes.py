"""Several processes that work as one, joined by `jax.distributed`: each does a part, process 0 puts it together.

A process that fails or dies stops the others, each with a message.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import dataclasses
import itertools
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
from flax import traverse_util
from jax._src import distributed  # barriers and keys have no public name

Item = TypeVar("Item")

HEARTBEAT_TIMEOUT_S = 30
"""After so long without a sign a process counts as dead."""
_TELLING_S = 2  # for the others to tell why they stop
_FOREVER_MS = 365 * 24 * 3600 * 1000
_FAILED = "dvp_jax/failed"

_barriers = itertools.count()
_joined = threading.Event()
_watching: list[threading.Thread] = []
_ending = threading.Lock()  # of the thread that says how this process ends


@dataclasses.dataclass(frozen=True)
class Process:
    """This process among those of a run.

    Attributes:
        index: from 0 to count - 1; process 0 writes what belongs to all.
        count: of processes.
        together: all do the same at once, on a mesh of all their devices; else each does a part.
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
        """Into how many parts the work is divided."""
        return 1 if self.together else self.count

    @property
    def writes(self) -> bool:
        """Whether this process writes down what it did: of those that do the same process 0 alone."""
        return self.first or not self.together

    def part(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every count-th item from the index-th on: each item is in the part of one process; or all, together."""
        return items if self.together else items[self.index :: self.count]

    def wait(self) -> None:
        """Waits until every process has called this as often as this one."""
        if self.count > 1:
            _client().wait_at_barrier(f"dvp_jax/{next(_barriers)}", _FOREVER_MS)

    def agree(self, mine: Mapping[str, Any]) -> None:
        """Refuses processes that are not of one run; waits for all.

        Args:
            mine: can be written as JSON.

        Raises:
            ValueError: names each field that differs from process 0's, with both values.
        """
        if self.count == 1:
            return
        client, place = _client(), f"dvp_jax/agree/{next(_barriers)}"
        client.key_value_set(f"{place}/{self.index}", json.dumps(mine))
        self.wait()
        first, *others = (
            json.loads(client.blocking_key_value_get(f"{place}/{index}", _FOREVER_MS))
            for index in range(self.count)
        )
        for index, other in enumerate(others, start=1):
            if differs := differences(first, other):
                raise ValueError(
                    f"process {index} differs from process 0: "
                    + "; ".join(f"{name} is {its!r}, not {want!r}" for name, (want, its) in differs.items())
                )


ALONE = Process()


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Both values of each field in which two nested dictionaries differ, under its dotted name."""
    left, right = (traverse_util.flatten_dict(dict(tree), keep_empty_nodes=True, sep=".") for tree in (one, other))
    return {
        name: (left.get(name), right.get(name))
        for name in sorted({*left, *right})
        if left.get(name) != right.get(name)
    }


def _client() -> Any:
    return distributed.global_state.client


def current() -> Process:
    """This process among those that have joined; alone where none was asked to."""
    return Process(distributed.global_state.process_id, distributed.global_state.num_processes)


def join(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes; to be called before JAX computes anything.

    From here on the process ends by `leave`, or as one that failed.

    Args:
        coordinator: host:port where process 0 listens, or "auto" where JAX can find out by itself (TPU pods,
            Slurm, Open MPI).
        num_processes: of the run; None for "auto".
        process_id: of this one, from 0; None for "auto".

    Raises:
        ValueError: one of them is missing or impossible.
        OSError: the others did not come.
    """
    if coordinator == "auto":
        address = None
    else:
        address = coordinator
        host, _, port = coordinator.rpartition(":")
        if not (host and port.isdigit()):
            raise ValueError(f'coordinator is {coordinator!r}; allowed: host:port, or "auto"')
        if num_processes is None or num_processes < 1:
            raise ValueError(f"num_processes is {num_processes}; allowed: at least 1")
        if process_id is None or not 0 <= process_id < num_processes:
            raise ValueError(f"process_id is {process_id}; allowed: from 0 to {num_processes - 1}")
    # JAX aborts a process that lost the others. The sleep leaves `_watch` the time to tell why.
    libc = ctypes.CDLL(None)
    libc.signal(signal.SIGABRT, ctypes.cast(libc.sleep, ctypes.c_void_p))
    try:
        jax.distributed.initialize(
            address, num_processes, process_id, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT_S
        )
    except RuntimeError as error:
        raise OSError(f"coordinator is {coordinator!r}: {error}") from None
    client, me = _client(), current()
    if me.count == 1:
        return  # nobody to watch: its own barrier would open at once
    _joined.set()
    atexit.register(_fail)
    # The first of these ends with process 0 or with the word of a process that failed, the second, a barrier that
    # no other process comes to, when any other process dies.
    for call in (
        lambda: client.blocking_key_value_get(_FAILED, _FOREVER_MS),
        lambda: client.wait_at_barrier(f"dvp_jax/watch/{me.index}", _FOREVER_MS),
    ):
        _watching.append(threading.Thread(target=_watch, args=(call,), daemon=True))
        _watching[-1].start()
    if jax.default_backend() == "cpu":
        # JAX's compile cache gains nothing there: process 0 alone writes, and the others, whose topology has keys
        # of their own, never find that. And process 0 was once seen to wait in it for ever, for an unknown reason.
        jax.config.update("jax_enable_compilation_cache", False)


def _watch(call: Callable[[], str | None]) -> None:
    try:
        cause = call()
    except jax.errors.JaxRuntimeError as error:
        if _ending.locked():
            return  # this process has left, or another thread says how it ends
        found = re.search(r"Task (\d+)", str(error))  # without a name it is the connection that broke: process 0's
        cause = (
            f"process {found[1] if found else 0} of {current().count} died or cannot be reached; what was written "
            "stays: start all processes again to go on"
        )
        time.sleep(_TELLING_S / 2)  # so that this comes after what JAX writes
    if _ending.acquire(blocking=False):
        print(f"\nerror: {cause}", file=sys.stderr)  # below a progress bar
        _exit()


def _end() -> None:
    """Goes on in the one thread that says how this process ends."""
    if not _ending.acquire(blocking=False):
        threading.Event().wait()  # until `_watch` has ended the process


def tell(error: BaseException) -> None:
    """Tells the other processes why this one fails, unless it is because of them: then it ends here.

    To be called before this process says so itself.
    """
    if not _joined.is_set():
        return
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, jax.errors.JaxRuntimeError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        time.sleep(HEARTBEAT_TIMEOUT_S + 10)  # `_watch` tells which process died, if one did
    _end()
    _announce(str(error))


def _announce(cause: str) -> None:
    me = current()
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # where process 0 is gone, nobody is left to be told
        _client().key_value_set(_FAILED, f"process {me.index} of {me.count} failed: {cause}", allow_overwrite=True)


def _fail() -> None:
    """Ends a process that has not called `leave`, without JAX's own leave-taking, which waits for the others."""
    if _ending.acquire(blocking=False):
        _announce("see what it wrote")
    time.sleep(_TELLING_S)
    _exit()


def _exit() -> None:
    if current().first:
        time.sleep(_TELLING_S)  # JAX aborts the others once it is gone
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def leave() -> None:
    """Waits until all processes are done, and parts from them."""
    if not _joined.is_set():
        return
    current().wait()
    _end()
    atexit.unregister(_fail)
    jax.distributed.shutdown()
    for thread in _watching:
        thread.join()  # one that still waits in JAX's client while Python ends would abort the process
