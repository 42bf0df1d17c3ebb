"""Draws the accuracy of each depth for several training runs, each at its last validation, into one SVG.

python -m experiments.plot_accuracy --runs=final=runs/final,weighted=runs/weighted --output=accuracy.svg
"""

from __future__ import annotations

from absl import flags

from dvp_jax.report.plots import accuracy_per_depth
from dvp_jax.runs import launch
from dvp_jax.runs.files import check_output
from dvp_jax.train.trainer import read_metrics

_RUNS = flags.DEFINE_list(
    "runs", None, "NAME=WORKDIR of experiments.finetune, separated by commas.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Path of the SVG.", required=True)


def main() -> None:
    """Draws the plot and prints the accuracies in percent, one line for each run."""
    output = check_output(_OUTPUT.value)
    curves = {}
    for name, workdir in launch.named_folders("runs", _RUNS.value).items():
        lines = [line for line in read_metrics(workdir / "metrics.jsonl") if line["split"] == "validation"]
        if not lines:
            raise ValueError(f"{workdir} holds no validation yet")
        curves[name] = lines[-1]["accuracy"]
        print(name, *(f"{100 * accuracy:.1f}" for accuracy in curves[name]))
    accuracy_per_depth(curves, output)


if __name__ == "__main__":
    launch.run(main)
