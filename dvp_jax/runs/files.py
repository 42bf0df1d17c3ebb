"""Where results go: folders that one process owns, files that are whole or not there."""

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
    """Makes the folder, and checks that it can be written before any work is done.

    Raises:
        OSError: it cannot be made or written.
    """
    workdir = Path(workdir)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=workdir):
            pass
    except OSError as error:
        raise OSError(f"workdir {workdir} cannot be written: {error.strerror}") from None
    return workdir


@contextlib.contextmanager
def lock_workdir(workdir: str | Path, index: int = 0) -> Iterator[Path]:
    """`prepare_workdir`, and no other process may own the folder meanwhile, but those of the same run.

    The lock is the kernel's: it ends with the process, however that ends.

    Args:
        workdir: made where it is missing.
        index: of this process among those of a run, which have a lock each.

    Raises:
        OSError: it cannot be made or written, or another process owns it.
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
    """Writes a text file that appears under its name only when it is complete."""
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
    """`write_whole` of a value as readable JSON."""
    write_whole(path, [json.dumps(value, indent=2, ensure_ascii=False) + "\n"])


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """`write_whole` of a value a line."""
    write_whole(path, (json.dumps(value, ensure_ascii=False) + "\n" for value in values))
