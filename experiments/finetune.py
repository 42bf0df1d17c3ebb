"""Trains a T5 for early exit, from a checkpoint or from scratch.

    python -m experiments.finetune --config=experiments/configs/finetune_multi30k.py --workdir=runs/multi30k

Writes under --workdir: model/ (a Hugging Face folder), metrics.jsonl, accuracy_per_depth.svg and checkpoints/.
--resume continues a run that was interrupted. --coordinator, --num_processes and --process_id make this process
one of several that train together and share the workdir.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax.runs import launch
from dvp_jax.train.finetune import finetune

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to train; see experiments/configs/finetune_*.")
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "The folder in which the model and the log are written.", required=True
)
_RESUME = flags.DEFINE_bool("resume", False, "Continue from the latest checkpoint in the workdir.")


def main() -> None:
    """Trains the model."""
    folder = finetune(_CONFIG.value.to_dict(), _WORKDIR.value, resume=_RESUME.value)
    print(f"the best model is in {folder}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main, several=True, interrupted=launch.TRAINED)
