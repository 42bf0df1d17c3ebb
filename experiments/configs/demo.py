"""The demo that ships with the package: full, static, calm and dvp on made-up questions and dialogues, batch 1.

Not a table of a paper: the texts are made up, so the figures show what the methods do and prove nothing about
SQuAD or SamSum. Seen: the README's table.

    python -m experiments.evaluate --config=experiments/configs/demo.py --workdir=runs/demo
"""

from pathlib import Path

from ml_collections import ConfigDict

import dvp_jax
from experiments.configs.common import evaluation

DEMO = Path(dvp_jax.__file__).parent / "demo"
"""Model and test sets; scripts/make_demo.py makes them."""


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
