"""Which p, K and threshold? Multi30k, English to German, p in {1, 2, 3} and K in {32, 128, 512}.

This is no table of the paper, which leaves the choice open. Result: the figure in docs/results.md, on the first
100 sentences (--config.limit=100 --config.explore=0), in 3 minutes on two CPU cores.

    python -m experiments.sweep --config=experiments/configs/multi30k_sweep.py --workdir=runs/multi30k_sweep \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=test_2016_flickr.en \
        --config.tasks.translation.target_path=test_2016_flickr.de
"""

from ml_collections import ConfigDict

from experiments.configs import multi30k
from experiments.configs.common import sweep


def get_config() -> ConfigDict:
    """The config."""
    return sweep(
        multi30k.get_config(),
        {
            "full": {},
            "calm": {"min_exit_layer": (2,), "threshold": (0.3, 0.5)},
            "dvp": {"prune_layer": (1, 2, 3), "prune_size": (32, 128, 512), "threshold": (0.3, 0.5)},
        },
    )
