"""The fastest setting of lossless? Multi30k, English to German, p, K, threshold and how many drafts wait.

This is no table of the paper. Quality is that of full in every cell. Rows called "recent" need common tokens
beside the checkpoint (scripts.count_tokens). Result: docs/performance.md.

    python -m experiments.sweep --config=experiments/configs/multi30k_lossless_sweep.py \
        --workdir=runs/lossless_sweep --config.model=CHECKPOINT --config.limit=100 --config.explore=0 \
        --config.tasks.translation.source_path=test_2016_flickr.en \
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
            "lossless": {
                "min_exit_layer": (2,),
                "prune_rule": ("fixed", "recent"),
                "prune_size": (64, 512),
                "threshold": (0.3, 0.5, 0.7),
                "max_waiting": (4, 8),
            },
        },
    )
