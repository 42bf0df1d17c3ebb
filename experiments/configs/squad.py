"""T5-large on SQuAD at the paper's settings: p = 2, K = 64, threshold 0.9.

Published: F1 90.6 for dvp (DVP). Ours: not run.

    python -m experiments.evaluate --config=experiments/configs/squad.py --workdir=runs/squad

The data set comes from the hub, or from a file by --config.tasks.squad.path=dev-v1.1.json.
"""

from ml_collections import ConfigDict

from experiments.configs.common import evaluation


def get_config() -> ConfigDict:
    """The config."""
    return evaluation(
        model="google-t5/t5-large", tasks={"squad": {"path": None}}, threshold=0.9, prune_sizes=(64,)
    )
