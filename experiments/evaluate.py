"""Evaluates several ways of decoding over one or more tasks, side by side.

    python -m experiments.evaluate --config=experiments/configs/multi30k.py --workdir=runs/multi30k \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=test.en \
        --config.tasks.translation.target_path=test.de

Writes results.json and predictions.jsonl under --workdir and prints the table.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax import launch
from dvp_jax.evaluation import evaluate, results_table, set_up, write_results

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results.json and predictions.jsonl go.", required=True)


def main() -> None:
    """Runs the evaluation that the flags describe."""
    config = _CONFIG.value
    setup = set_up(config, _WORKDIR.value)
    rows, predictions = [], []
    for task, methods in setup.tasks:
        of_task = evaluate(setup.model, task, methods, batch_size=config.batch_size, limit=config.limit)
        rows += of_task[0]
        predictions += of_task[1]
    write_results(setup.workdir, rows, predictions, model=config.model, config=config.to_dict())
    print(results_table(rows))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
