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
    """Raises ValueError if a config lacks some of the fields, as one that is for another launcher does."""
    if missing := [name for name in fields if name not in config]:
        launcher = {EVALUATION: "evaluate", SWEEP: "sweep", TRAINING: "finetune"}[fields]
        raise ValueError(f"config has no {', '.join(missing)}; allowed: a config of experiments.{launcher}")
