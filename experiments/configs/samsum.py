"""T5-large on SamSum's validation split at the paper's settings: p = 2, K = 512, threshold 0.9.

Published: ROUGE-L 43.1 for dvp (DVP), the middle of a bootstrap; with a model fine-tuned for the
task. Ours: not run.

    python -m experiments.evaluate --config=experiments/configs/samsum.py --workdir=runs/samsum

The data set comes from the hub, or from a file by --config.tasks.samsum.path=validation.csv.
"""

from ml_collections import ConfigDict

from experiments.configs.common import evaluation


def get_config() -> ConfigDict:
    """The config."""
    return evaluation(
        model="google-t5/t5-large", tasks={"samsum": {"path": None}}, threshold=0.9, prune_sizes=(512,)
    )
