"""Evaluates several ways of decoding over one or more tasks, side by side.

    python -m experiments.evaluate --config=experiments/configs/multi30k.py --workdir=runs/multi30k \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=test.en \
        --config.tasks.translation.target_path=test.de

Writes results.json, predictions.jsonl, traces.jsonl and report.html under --workdir and prints the table. Started
again, an interrupted run goes on where it was. With --coordinator, --num_processes and --process_id as one of
several processes that share the workdir.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax.evaluate.evaluation import results_table
from dvp_jax.evaluate.experiment import run_evaluation
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go.", required=True)


def main() -> None:
    """Runs the evaluation that the flags describe."""
    print(results_table(run_evaluation(_CONFIG.value.to_dict(), _WORKDIR.value)))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main, several=True)
