"""The thresholds that experiments.thresholds found for a task, beside the full model. This is no table of a paper.

The config takes the path of thresholds.json and, if the file has several tasks, a comma and the name of one:

    python -m experiments.evaluate --workdir=runs/tuned \
        --config=experiments/configs/tuned_thresholds.py:runs/thresholds/thresholds.json,squad

Evaluate on other examples than those that the thresholds were found on, for example with
--config.tasks.squad.path=dev.json.
"""

from pathlib import Path

from ml_collections import ConfigDict, config_dict

from dvp_jax.runs.files import as_written, read_json


def get_config(source: str) -> ConfigDict:
    """Makes the config from "PATH" or "PATH,TASK"."""
    path, _, task = source.partition(",")
    data = read_json(Path(path))
    if data is None:
        raise FileNotFoundError(f"no file {path}")
    with as_written(Path(path), "thresholds"):
        config = dict(data["config"])
        found = {name: {row["name"]: row["settings"] for row in rows} for name, rows in data["tasks"].items()}
        tasks = {name: config["tasks"][name] for name in found}
    if not task and len(tasks) == 1:
        (task,) = tasks
    if task not in tasks:
        raise ValueError(f"task is {task!r}, behind the comma after {path}; allowed: {', '.join(tasks)}")
    if config.get("limit") is None:
        config["limit"] = config_dict.placeholder(int)
    methods = {"full": {"method": "full"}, **found[task]}
    return ConfigDict({**config, "tasks": {task: tasks[task]}, "methods": methods})
