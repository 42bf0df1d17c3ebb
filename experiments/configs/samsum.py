"""T5-large, as pre-trained, on SamSum's validation split: p = 2, K = 64 and 512, threshold 0.9.

Published (DVP, results table): ROUGE-L 43.1 for dvp with K = 512 on T5-large, the middle of a bootstrap. Ours: not
run, so no time was seen.

    python -m experiments.evaluate --config=experiments/configs/samsum.py --workdir=runs/samsum

The data set comes from the hub, or from a file by --config.tasks.samsum.path=validation.csv.
"""

from ml_collections import ConfigDict

from experiments.configs.common import paper


def get_config() -> ConfigDict:
    """The config."""
    return paper("samsum", "google-t5/t5-large")
