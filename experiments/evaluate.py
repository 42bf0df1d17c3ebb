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
from dvp_jax.data import make_task
from dvp_jax.evaluation import evaluate, make_methods, results_table, write_results
from dvp_jax.files import prepare_workdir
from dvp_jax.t5.load import load_model

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results.json and predictions.jsonl go.", required=True)


def main() -> None:
    """Runs the evaluation that the flags describe."""
    config = _CONFIG.value
    if not config.model:
        raise ValueError("config.model is not set; allowed: a checkpoint folder or a hub id (--config.model=...)")
    workdir = prepare_workdir(_WORKDIR.value)
    tasks = [make_task(name, **fields) for name, fields in config.tasks.items()]
    methods = [make_methods(config.methods, task.max_new_tokens) for task in tasks]
    model = load_model(config.model, config.dtype, progress=True)
    rows, predictions = [], []
    for task, ways in zip(tasks, methods, strict=True):
        of_task = evaluate(model, task, ways, batch_size=config.batch_size, limit=config.limit)
        rows += of_task[0]
        predictions += of_task[1]
    write_results(workdir, rows, predictions, model=config.model, config=config.to_dict())
    print(results_table(rows))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
