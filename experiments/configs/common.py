"""What the evaluation configs share."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, config_dict


def evaluation(
    *, task: Mapping[str, Any], threshold: float, prune_sizes: tuple[int, ...], model: str | None = None
) -> ConfigDict:
    """full, calm, and dvp at p = 2 with each prune size, batch 1."""
    early = {"threshold": threshold, "min_exit_layer": 2}
    dvp = {f"dvp_{size}": {"method": "dvp", "prune_layer": 2, "prune_size": size, **early} for size in prune_sizes}
    optional = {name: config_dict.placeholder(str) if value is None else value for name, value in task.items()}
    return ConfigDict(
        {
            "model": config_dict.placeholder(str) if model is None else model,
            "dtype": "float32",
            "task": optional,
            "methods": {"full": {"method": "full"}, "calm": {"method": "calm", **early}, **dvp},
            "batch_size": 1,
            "limit": config_dict.placeholder(int),
        }
    )
