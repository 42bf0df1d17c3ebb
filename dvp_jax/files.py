"""Where results go: folders checked before any work, files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path


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
