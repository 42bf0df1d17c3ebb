"""Evaluates several methods on one or more tasks, side by side.

    python -m experiments.evaluate --config=experiments/configs/multi30k.py --workdir=runs/multi30k \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=test.en \
        --config.tasks.translation.target_path=test.de

Writes results.json, predictions.jsonl, traces.jsonl and report.html under --workdir, and prints the tables. An
interrupted run continues where it stopped when it is started again. To run as one of several processes that share
the workdir, give --coordinator, --num_processes and --process_id.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dvp_jax.evaluate.experiment import run_evaluation
from dvp_jax.evaluate.results import results_sections
from dvp_jax.report.table import print_report
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for results.", required=True)


def main() -> None:
    """Runs the evaluation that the flags describe."""
    rows = run_evaluation(_CONFIG.value.to_dict(), _WORKDIR.value)
    print_report(results_sections(rows), Path(_WORKDIR.value) / "report.html")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main, several=True, interrupted=launch.DECODED)
