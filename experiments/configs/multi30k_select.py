"""Which p, K and threshold can be promised to be good enough? Multi30k, English to German, batches of 16.

p in {1, 2, 3}, K in {64, 512}, thresholds from 0.1 to 0.9 in CALM's steps of 0.05. This is no table of the paper,
which leaves the choice open. The table of promises in docs/selection.md is of a smaller grid: p in {2, 3}, K = 64,
thresholds 0.3, 0.5, 0.7, 0.9, 0.95 and 0.99.

    python -m experiments.select --config=experiments/configs/multi30k_select.py --workdir=runs/select \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=val.en \
        --config.tasks.translation.target_path=val.de --delta=0.05
"""

from ml_collections import ConfigDict

from experiments.configs import multi30k
from experiments.configs.common import sweep


def get_config() -> ConfigDict:
    """The config."""
    thresholds = tuple(step / 20 for step in range(2, 19))
    grid = {"full": {}, "dvp": {"prune_layer": (1, 2, 3), "prune_size": (64, 512), "threshold": thresholds}}
    config = sweep(multi30k.get_config(), grid)
    config.batch_size = 16
    return config
