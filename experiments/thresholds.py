"""Which threshold at which depth? The smallest whose exits agree with the full model often enough.

    python -m experiments.thresholds --config=experiments/configs/demo.py --workdir=runs/thresholds \
        --config.batch_size=16 --share=0.98

Finds for every calm and dvp method of the config, and every measure that it can use, the smallest threshold of
each depth for which at least --share of the tokens that exit there are the full model's, as in FlexEE. Writes
thresholds.json and report.html under --workdir. Prints a table for each task. Takes any config of
experiments.evaluate. This command took 53 seconds on two CPU cores.

To evaluate the thresholds of a task beside the full model (change the task's path to use other examples):

    python -m experiments.evaluate --workdir=runs/tuned \
        --config=experiments/configs/tuned_thresholds.py:runs/thresholds/thresholds.json,squad
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dvp_jax.analysis.run import run_analysis
from dvp_jax.analysis.thresholds import Thresholds
from dvp_jax.report.table import print_report
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for thresholds.json and report.html.", required=True)
_SHARE = flags.DEFINE_float("share", 0.98, "Share of the exits of each depth that must agree with the full model.")


def main() -> None:
    """Runs the analysis and prints its tables."""
    sections = run_analysis(_CONFIG.value.to_dict(), _WORKDIR.value, Thresholds(_SHARE.value))
    print_report(sections, Path(_WORKDIR.value) / "report.html")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
