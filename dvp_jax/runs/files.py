"""Folders that one run locks, and files that appear only once they are complete."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def prepare_workdir(workdir: str | Path) -> Path:
    """Creates a folder if it does not exist, and checks that files can be written there.

    Raises:
        ValueError: the path is empty.
        OSError: the folder cannot be created or written.
    """
    if workdir == "":  # `Path` would make it the current folder
        raise ValueError(f"workdir is {workdir!r}; allowed: the path of a folder")
    folder = Path(workdir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"workdir {folder} cannot be written: {error.strerror}") from None
    return folder


@contextlib.contextmanager
def lock_workdir(workdir: str | Path, index: int = 0) -> Iterator[Path]:
    """Prepares a folder and locks it, so that no other run can lock it at the same time.

    The kernel holds the lock and releases it when the process ends, also when it is killed.

    Args:
        workdir: created if it does not exist.
        index: the index of this process in its run. The processes of one run share the folder, and each has a lock
            of its own.

    Raises:
        ValueError: the path is empty.
        OSError: the folder cannot be created or written, or another run has locked it.
    """
    folder = prepare_workdir(workdir)
    with open(folder / (f".lock-{index}" if index else ".lock"), "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise OSError(f"workdir {folder} is in use by process {lock.read() or '?'}; allowed: one") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield folder


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Writes a text file under a temporary name and renames it once it is complete.

    Args:
        path: an existing file is replaced.
        parts: written one after the other, without separators.
    """
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Writes a value as indented JSON, with `write_whole`."""
    write_whole(path, [json.dumps(value, indent=2, ensure_ascii=False) + "\n"])


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Writes one JSON value a line, with `write_whole`."""
    write_whole(path, (json.dumps(value, ensure_ascii=False) + "\n" for value in values))
