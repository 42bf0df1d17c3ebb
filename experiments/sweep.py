"""Evaluates a grid of settings: which method, p, K and threshold?

    python -m experiments.sweep --config=experiments/configs/demo_sweep.py --workdir=runs/demo_sweep

Writes a file for each cell under --workdir/cells, then sweep.json, plots and report.html, and prints the table.
Started again, an interrupted sweep goes on with the cell that was running.
With --coordinator, --num_processes and --process_id as one of several processes that share the workdir.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax.evaluate.evaluation import results_table
from dvp_jax.evaluate.experiment import run_sweep
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to sweep; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go.", required=True)


def main() -> None:
    """Runs the sweep that the flags describe."""
    print(results_table(run_sweep(_CONFIG.value.to_dict(), _WORKDIR.value)))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main, several=True)
