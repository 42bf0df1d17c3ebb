"""The demo that ships with the package: full, static, calm and dvp on made-up questions and dialogues, batch 1.

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


def get_config() -> ConfigDict:
    """The config."""
    lengths = {"max_source_length": 128, "max_new_tokens": 40}
    config = evaluation(
        model=str(DEMO / "model"),
        tasks={
            "squad": {"path": str(DEMO / "squad_test.json"), **lengths},
            "samsum": {"path": str(DEMO / "samsum_test.csv"), **lengths},
        },
        threshold=0.9,
        prune_sizes=(64,),
    )
    config.methods.static = {"method": "static", "static_exit_layer": 4}
    return config
