"""The provenance of a result: config, versions, code, model, data, device and time."""

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
from typing import TYPE_CHECKING, Any

import jax

if TYPE_CHECKING:
    from dvp_jax.data.task import Task
    from dvp_jax.t5.load import Model

PACKAGE_FOLDER = Path(__file__).parents[1]
_DISTRIBUTIONS = ("dvp-jax", "jax", "jaxlib", "flax", "transformers")


def provenance(
    config: Mapping[str, Any], model: Model, tasks: Sequence[Task], seed: int | None = None
) -> dict[str, Any]:
    """Returns all that a result depends on, as values that can be written as JSON.

    Args:
        config: the config of the run. Its field "model" names the checkpoint.
        model: the loaded checkpoint.
        tasks: the tasks of the run. All their examples are read for the fingerprint.
        seed: the seed of random draws; None if there are none.
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
    """Returns the versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _DISTRIBUTIONS}


def digest(value: Any) -> str:
    """Returns a hash of a value that can be written as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@functools.cache
def code_fingerprint() -> str:
    """Returns a hash of all modules of this package, with changes that are not committed."""
    paths = PACKAGE_FOLDER.rglob("*.py")
    return digest({str(path.relative_to(PACKAGE_FOLDER)): path.read_text("utf-8") for path in paths})


def _git_revision() -> str | None:
    """Returns the commit of the code, with "-dirty" if files have changed since. None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=PACKAGE_FOLDER, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return None
    return run.stdout.strip() or None
