"""Where results go: folders checked before any work, files that are whole or not there."""

from __future__ import annotations

import json
import os
import platform
import tempfile
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import jax


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


def write_json(path: Path, content: Mapping[str, Any], *, model: str | None, config: Mapping[str, Any]) -> None:
    """Writes a data file whole or not at all, with what it was made from.

    Args:
        path: of the file.
        content: what was found, as JSON.
        model: name of the checkpoint, if there is one.
        config: what was run, as JSON.

    Raises:
        ValueError: content holds NaN or an infinity, which JSON does not have.
    """
    packages = ("dvp-jax", "jax", "jaxlib", "flax", "transformers")
    made_from = {
        "model": model,
        "config": config,
        "versions": {"python": platform.python_version()} | {name: metadata.version(name) for name in packages},
        "device": jax.devices()[0].device_kind,
    }
    text = json.dumps({**content, **made_from}, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, [text + "\n"])
