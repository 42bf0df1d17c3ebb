"""The settings that experiments.thresholds found for a task, beside the full model.

Not a table of a paper. The command, with the file that it wrote and, where that holds several tasks, the one to
take:

    python -m experiments.evaluate --workdir=runs/tuned \
        --config=experiments/configs/tuned_thresholds.py:runs/thresholds/thresholds.json,squad

Evaluate on another set than the one they were found on: --config.tasks.squad.path=..., for instance.
"""

import json
from pathlib import Path

from ml_collections import ConfigDict, config_dict


def get_config(found: str) -> ConfigDict:
    """The config, of the file's path and perhaps, behind a comma, the task."""
    path, _, task = found.partition(",")
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    if not task and len(data["tasks"]) == 1:
        (task,) = data["tasks"]
    if task not in data["tasks"]:
        raise ValueError(f"{path} has {', '.join(data['tasks'])}, not task {task!r}; give one behind a comma")
    methods = {row["name"]: row["settings"] for row in data["tasks"][task]}
    config = {**data["config"], "tasks": {task: data["config"]["tasks"][task]}}
    if config["limit"] is None:
        config["limit"] = config_dict.placeholder(int)
    return ConfigDict({**config, "methods": {"full": {"method": "full"}, **methods}})
