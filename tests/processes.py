"""Launchers as several processes of one run, on this machine."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def host_flags(count: int) -> list[list[str]]:
    """The flags of each process, with a port that is free now."""
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
            [sys.executable, *map(str, command), *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for command, flags in zip(commands, host_flags(len(commands)), strict=True)
    ]


def end(processes: Sequence[subprocess.Popen], timeout_s: float = 300) -> list[subprocess.CompletedProcess]:
    """Waits for all, which must end in time."""
    ended = []
    try:
        for process in processes:
            stdout, stderr = process.communicate(timeout=timeout_s)
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr))
    finally:
        for process in processes:
            process.kill()
    return ended


def last_line(run: subprocess.CompletedProcess) -> str:
    """The last line of what a process told."""
    return run.stderr.splitlines()[-1] if run.stderr else ""
