"""T5-large, as pre-trained, on SQuAD at the paper's settings: p = 2, K = 64 and 512, threshold 0.9.

Published (DVP, results table): F1 90.6 for dvp with K = 64 on T5-large. Ours: not run, so no time was seen.

    python -m experiments.evaluate --config=experiments/configs/squad.py --workdir=runs/squad

The data set comes from the hub, or from a file by --config.tasks.squad.path=dev-v1.1.json.
"""

from ml_collections import ConfigDict

from experiments.configs.common import paper


def get_config() -> ConfigDict:
    """The config."""
    return paper("squad", "google-t5/t5-large")
