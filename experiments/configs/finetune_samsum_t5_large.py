"""Fine-tunes T5-large on SamSum with CALM's anytime loss over all depths.

    python -m experiments.finetune --config=experiments/configs/finetune_samsum_t5_large.py \
        --workdir=runs/samsum_t5_large

The optimiser is that of T5's own fine-tuning: Adafactor at a constant 1e-3; 3 epochs. Model and data come from the
hub, or from folders and files by --config.model, --config.tasks.samsum.path and
--config.validation_tasks.samsum.path. Needs an accelerator.

The paper's authors fine-tuned jvelja/t5-samsum instead (3 epochs, learning rate 5e-5, batch 8); see
samsum_finetuned.py for its published figures. Ours: not run.
"""

from ml_collections import ConfigDict

from experiments.configs.common import t5_large


def get_config() -> ConfigDict:
    """The config."""
    return t5_large("samsum", steps=1400)
