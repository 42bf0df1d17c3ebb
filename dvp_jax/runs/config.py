"""Configs, which come from a file of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

EVALUATION = ("model", "dtype", "tasks", "methods")
"""Fields that every config of `experiments.evaluate` has."""
SWEEP = ("model", "dtype", "tasks", "sweep")
"""Fields that every config of `experiments.sweep` has."""
TRAINING = ("model", "shape", "tokenizer", "tasks", "validation_tasks", "limit", "validation_limit", "train")
"""Fields that every config of `experiments.finetune` has."""


def check_fields(config: Mapping[str, Any], fields: tuple[str, ...]) -> None:
    """Checks that a config has the fields, and names tasks and methods.

    Raises:
        ValueError: a field is missing, as in a config for another launcher; or tasks, methods or sweep is empty,
            or does not give a name to each group of settings.
    """
    if missing := [name for name in fields if name not in config]:
        launcher = {EVALUATION: "evaluate", SWEEP: "sweep", TRAINING: "finetune"}[fields]
        raise ValueError(f"config has no {', '.join(missing)}; allowed: a config of experiments.{launcher}")
    for name in (name for name in ("tasks", "validation_tasks", "methods", "sweep") if name in fields):
        groups = config[name]
        if not groups and name != "validation_tasks":
            raise ValueError(f"config.{name} is {groups!r}; allowed: at least one")
        if not isinstance(groups, Mapping) or not all(isinstance(group, Mapping) for group in groups.values()):
            raise ValueError(f"config.{name} is {groups!r}; allowed: settings under each name")
