"""T5-large fine-tuned on SamSum, every depth learning (CALM's anytime loss): for the SamSum row of DVP's table.

    python -m experiments.finetune --config=experiments/configs/finetune_samsum_t5_large.py \
        --workdir=runs/samsum_t5_large

T5's own fine-tuning: Adafactor at a constant 1e-3; 3 epochs. Model and data come from the hub, or from folders
and files by --config.model, --config.tasks.samsum.path and --config.validation_tasks.samsum.path. Needs an
accelerator. Published: ROUGE-L 43.1 for dvp with a fine-tuned T5-large (DVP). Ours: not run.
"""

from ml_collections import ConfigDict

from experiments.configs.common import t5_large


def get_config() -> ConfigDict:
    """The config."""
    return t5_large("samsum", steps=1400)
