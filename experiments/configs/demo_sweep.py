"""Which p, K and threshold? The demo's model and test sets, p in {1, 2, 3} and K in {32, 64, 128}.

This is no table of the paper, which leaves the choice open.

    python -m experiments.sweep --config=experiments/configs/demo_sweep.py --workdir=runs/demo_sweep
"""

from ml_collections import ConfigDict

from experiments.configs import demo
from experiments.configs.common import sweep


def get_config() -> ConfigDict:
    """The config."""
    return sweep(
        demo.get_config(),
        {
            "full": {},
            "calm": {"min_exit_layer": (1, 2, 3), "threshold": (0.7, 0.9)},
            "dvp": {"prune_layer": (1, 2, 3), "prune_size": (32, 64, 128), "threshold": (0.7, 0.9)},
        },
    )
