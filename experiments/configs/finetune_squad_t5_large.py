"""Fine-tunes T5-large on SQuAD with CALM's anytime loss over all depths.

    python -m experiments.finetune --config=experiments/configs/finetune_squad_t5_large.py \
        --workdir=runs/squad_t5_large

The optimiser is that of T5's own fine-tuning: Adafactor at a constant 1e-3; 2 epochs. Model and data come from the
hub, or from folders and files by --config.model, --config.tasks.squad.path and
--config.validation_tasks.squad.path. Needs an accelerator.

The paper's authors fine-tuned jvelja/t5-squad instead; for its published figures see
squad_finetuned.py. Ours: not run.
"""

from ml_collections import ConfigDict

from experiments.configs.common import t5_large


def get_config() -> ConfigDict:
    """The config."""
    return t5_large("squad", steps=5500)
