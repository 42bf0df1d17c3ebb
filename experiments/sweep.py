"""Evaluates a grid of settings: which method, p, K and threshold?

    python -m experiments.sweep --config=experiments/configs/demo_sweep.py --workdir=runs/demo_sweep

Writes a file for each cell into the folder "cells" under --workdir, then sweep.json, plots and report.html, and
prints the tables. An interrupted sweep continues with the cell that was running when it is started again. To run
as one of several processes that share the workdir, give --coordinator, --num_processes and --process_id.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dvp_jax.evaluate.experiment import run_sweep
from dvp_jax.evaluate.results import results_sections
from dvp_jax.report.table import print_report
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to sweep; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for results.", required=True)


def main() -> None:
    """Runs the sweep that the flags describe."""
    rows = run_sweep(_CONFIG.value.to_dict(), _WORKDIR.value)
    print_report(results_sections(rows), Path(_WORKDIR.value) / "report.html")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main, several=True, interrupted=launch.DECODED)
