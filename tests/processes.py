"""Starts a Python program as several processes of one run, on this machine."""

from __future__ import annotations

import concurrent.futures
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tests.launching import QUICK_COMPILER, ROOT, TIMEOUT_S


def process_flags(count: int) -> list[list[str]]:
    """The flags that a launcher takes in each process, with a port that is free now."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        [f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={index}"]
        for index in range(count)
    ]


def begin(commands: Sequence[Sequence[object]]) -> list[subprocess.Popen]:
    """Starts Python with the arguments of each process and its flags."""
    return [
        subprocess.Popen(
            [sys.executable, "-X", "faulthandler", *map(str, command), *flags],
            cwd=ROOT,
            env=os.environ | QUICK_COMPILER,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, flags in zip(commands, process_flags(len(commands)), strict=True)
    ]


def end(processes: Sequence[subprocess.Popen]) -> list[subprocess.CompletedProcess]:
    """Waits until all have ended. Fails with the stacks of those that hang."""
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        runs = list(pool.map(_end, processes))
    if hung := [run for run in runs if isinstance(run, str)]:
        pytest.fail("\n".join(hung))
    return runs


def _end(process: subprocess.Popen) -> subprocess.CompletedProcess | str:
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler then writes the stack of each thread
        _, stderr = process.communicate()
        return f"{process.args} ran for {TIMEOUT_S} s:\n{stderr}"
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def errors(run: subprocess.CompletedProcess) -> list[str]:
    """The lines "error: ..." that a process printed."""
    return [line for line in run.stderr.splitlines() if line.startswith("error: ")]
