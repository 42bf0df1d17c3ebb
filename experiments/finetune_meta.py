"""Trains CALM's meta classifier on a frozen model, and writes both into one checkpoint.

    python -m experiments.finetune_meta --config=experiments/configs/finetune_demo.py --workdir=runs/meta \
        --config.model=CHECKPOINT --steps=300

Takes a config of `experiments.finetune` and uses its model, tasks and batch size. To decode with the classifier,
set `confidence="meta"`.
"""

from __future__ import annotations

import json

from absl import flags
from ml_collections import config_flags

from dvp_jax.runs import launch
from dvp_jax.runs.config import TRAINING, check_fields
from dvp_jax.runs.files import check_free, lock_workdir
from dvp_jax.t5.load import load_model, save_model
from dvp_jax.train.batches import batches_of
from dvp_jax.train.finetune import load_tasks
from dvp_jax.train.meta import LOSSES, train_meta, validate_meta
from dvp_jax.train.trainer import make_train_config

_CONFIG = config_flags.DEFINE_config_file("config", None, "Model and data; see experiments/configs/finetune_*.")
_WORKDIR = flags.DEFINE_string("workdir", None, "The folder in which model/ is written.", required=True)
_STEPS = flags.DEFINE_integer("steps", 300, "Optimiser steps.", lower_bound=1)
_LOSS = flags.DEFINE_enum("loss", "independent", LOSSES, "Which of CALM's two losses to use.")
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-2, "Learning rate of Adam.")


def main() -> None:
    """Trains the classifier, validates it and saves the model."""
    config = _CONFIG.value.to_dict()
    check_fields(config, TRAINING)
    cfg = make_train_config(config["train"])
    if not config["model"]:
        raise ValueError("config.model is not set; allowed: a checkpoint folder or a hub id (--config.model=...)")
    with lock_workdir(_WORKDIR.value) as workdir:
        folder = workdir / "model"
        check_free(folder)
        splits = (("tasks", "limit"), ("validation_tasks", "validation_limit"))
        data = [(load_tasks(config, tasks), config[limit]) for tasks, limit in splits]
        model = load_model(config["model"], progress=True)
        training, validation = (
            batches_of(model, tasks, batch_size=cfg.batch_size, seed=cfg.seed, limit=limit)
            for tasks, limit in data
        )
        model = train_meta(
            model, training, steps=_STEPS.value, loss=_LOSS.value, learning_rate=_LEARNING_RATE.value
        )
        print(json.dumps(validate_meta(model, validation)))
        save_model(folder, model)
        print(f"the model with its classifier is in {folder}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
