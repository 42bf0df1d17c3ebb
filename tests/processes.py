"""Starts a Python program as several processes of one run, on this machine."""

from __future__ import annotations

import concurrent.futures
import socket
import subprocess
from collections.abc import Sequence
from typing import Any

from tests.launching import Forked, finish, start_python


def process_flags(count: int) -> list[list[str]]:
    """The flags that a launcher takes in each process, with a port that is free now."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={index}"]
        for index in range(count)
    ]


def begin(commands: Sequence[Sequence[Any]]) -> list[Any]:
    """Starts the processes of one run, each with the flags of its place.

    Args:
        commands: for each process the arguments of Python; or a function, which a forked process calls, and what
            it finds in `sys.argv`.
    """
    return [
        Forked(*command, *flags) if callable(command[0]) else start_python(*command, *flags)
        for command, flags in zip(commands, process_flags(len(commands)), strict=True)
    ]


def end(processes: Sequence[Any]) -> list[subprocess.CompletedProcess[str]]:
    """Waits until all have ended. Fails with the stacks of one that hangs."""
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        return list(pool.map(finish, processes))


def errors(run: subprocess.CompletedProcess) -> list[str]:
    """The lines "error: ..." that a process printed."""
    return [line for line in run.stderr.splitlines() if line.startswith("error: ")]
