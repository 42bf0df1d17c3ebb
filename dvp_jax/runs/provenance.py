"""What made a result: config, versions, device, model, code and time."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from dvp_jax.data.task import Task
from dvp_jax.t5.load import Model

_PACKAGES = ("dvp-jax", "jax", "jaxlib", "flax", "transformers")


def provenance(
    config: Mapping[str, Any], model: Model, tasks: Sequence[Task], seed: int | None = None
) -> dict[str, Any]:
    """What made a result, as JSON.

    Args:
        config: what was run; names the checkpoint as "model".
        model: the same, loaded.
        tasks: read whole, for their fingerprint.
        seed: of random draws; None where there are none.
    """
    return {
        "model": config["model"],
        "model_fingerprint": model.fingerprint,
        "data_fingerprint": digest([dataclasses.astuple(x) for task in tasks for x in task.load()]),
        "config": dict(config),
        "versions": versions(),
        "git_revision": _git_revision(),
        "device": jax.devices()[0].device_kind,
        "seed": seed,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what is computed."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _PACKAGES}


def digest(value: Any) -> str:
    """A hash of a value that can be written as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@functools.cache
def code_fingerprint() -> str:
    """A hash of this package's code, committed or not."""
    folder = Path(__file__).parent
    return digest({str(path.relative_to(folder)): path.read_text("utf-8") for path in folder.rglob("*.py")})


def _git_revision() -> str | None:
    """The commit of the code, with "-dirty" where it was changed since; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # no git
        return None
    return run.stdout.strip() or None
