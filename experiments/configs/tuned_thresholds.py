"""The thresholds that experiments.thresholds found for a task, beside the full model. This is no table of a paper.

The config takes the path of thresholds.json and, if the file has several tasks, a comma and the name of one:

    python -m experiments.evaluate --workdir=runs/tuned \
        --config=experiments/configs/tuned_thresholds.py:runs/thresholds/thresholds.json,squad

Evaluate on other examples than those that the thresholds were found on, for example with
--config.tasks.squad.path=dev.json.
"""

from pathlib import Path

from ml_collections import ConfigDict, config_dict

from dvp_jax.runs.files import read_json


def get_config(source: str) -> ConfigDict:
    """Makes the config from "PATH" or "PATH,TASK"."""
    path, _, task = source.partition(",")
    data = read_json(Path(path))
    if not isinstance(data, dict) or "tasks" not in data:
        raise ValueError(f"{path} is no file that experiments.thresholds has written")
    if not task and len(data["tasks"]) == 1:
        (task,) = data["tasks"]
    if task not in data["tasks"]:
        raise ValueError(f"{path} has {', '.join(data['tasks'])}, not task {task!r}; give one behind a comma")
    methods = {row["name"]: row["settings"] for row in data["tasks"][task]}
    config = {**data["config"], "tasks": {task: data["config"]["tasks"][task]}}
    if config["limit"] is None:
        config["limit"] = config_dict.placeholder(int)
    return ConfigDict({**config, "methods": {"full": {"method": "full"}, **methods}})
