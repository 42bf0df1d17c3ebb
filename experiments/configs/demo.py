"""The demo that ships with the package: full, calm, dvp and lossless on made-up questions and dialogues, batch 1.

This is no table of the paper. The texts are made up, so the figures show what the methods do and prove nothing
about SQuAD or SamSum. Result: the table at the top of the README.

    python -m experiments.evaluate --config=experiments/configs/demo.py --workdir=runs/demo
"""

from pathlib import Path

from ml_collections import ConfigDict

import dvp_jax
from experiments.configs.common import evaluation

DEMO = Path(dvp_jax.__file__).parent / "demo"
"""The folder of the model and the test sets, which scripts/make_demo.py makes."""
THRESHOLDS = (0.99999, 0.9995, *[0.8] * 12)
"""Of each depth. At the same confidence the first depths are wrong more often than deeper ones, so they must be
surer. Chosen on the validation sets of scripts/make_demo.py."""


def get_config() -> ConfigDict:
    """The config."""
    lengths = {"max_source_length": 128, "max_new_tokens": 40}
    config = evaluation(
        model=str(DEMO / "model"),
        tasks={
            "squad": {"path": str(DEMO / "squad_test.json"), **lengths},
            "samsum": {"path": str(DEMO / "samsum_test.csv"), **lengths},
        },
        threshold=0.8,
        prune_sizes=(64,),
        prune_layers=(1,),
    )
    config.methods.lossless = {**config.methods.dvp_64, "method": "lossless", "max_waiting": 4}
    for name in ("calm", "dvp_64", "lossless"):
        del config.methods[name]["threshold"]
        config.methods[name].thresholds_per_depth = THRESHOLDS
    config.explore = 20
    return config
