"""How much is there to gain by exiting early? Draws how often each depth agrees with the last, for several models.

    python -m experiments.plot_agreement --runs=before=runs/ranks_before,after=runs/ranks_after \
        --output=agreement.svg

Agreement of a depth is the share of the full model's tokens that are the likeliest token at this depth. It is read
from ranks.json, which experiments.ranks writes, for each run; the runs should be of the same texts.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from dvp_jax.report.plots import accuracy_per_depth
from dvp_jax.report.table import Table
from dvp_jax.runs import launch
from dvp_jax.runs.files import as_written, check_output, read_json

_RUNS = flags.DEFINE_list("runs", None, "NAME=WORKDIR of experiments.ranks, separated by commas.", required=True)
_TASK = flags.DEFINE_string("task", None, "Name of the task; may be left out where there is one only.")
_OUTPUT = flags.DEFINE_string("output", None, "Path of the SVG.", required=True)


def _agreement(workdir: Path) -> list[float]:
    """The agreement of the depths 1 to L."""
    path = workdir / "ranks.json"
    ranks = read_json(path) or {"tasks": {}}
    with as_written(path, "ranks"):
        tasks = {
            name: [float(depth["agreement"]) for depth in task["depths"]] for name, task in ranks["tasks"].items()
        }
    task = _TASK.value or (next(iter(tasks)) if len(tasks) == 1 else None)
    if task not in tasks:
        allowed = ", ".join(tasks) or "that of a finished run of experiments.ranks"
        raise ValueError(f"task is {task!r} in {path}; allowed: {allowed}")
    return tasks[task]


def main() -> None:
    """Draws the plot and prints the agreement in percent, one line for each run."""
    output = check_output(_OUTPUT.value)
    curves = {name: _agreement(workdir) for name, workdir in launch.named_folders("runs", _RUNS.value).items()}
    accuracy_per_depth(curves, output, label="agreement with the last depth, % of tokens")
    deepest = max(map(len, curves.values()))
    lines = [
        [name, *(f"{100 * share:.1f}" for share in curve), *[""] * (deepest - len(curve))]
        for name, curve in curves.items()
    ]
    print(Table(["depth", *map(str, range(1, deepest + 1))], lines).markdown())


if __name__ == "__main__":
    launch.run(main)
