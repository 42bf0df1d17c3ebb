"""Refilled slots against fixed batches: full and dvp on Multi30k test_2016_flickr, English to German.

This is no table of the paper, which decodes one text at a time. Result: the tables in docs/performance.md.

    python -m experiments.throughput --workdir=runs/throughput \
        --config=experiments/configs/multi30k_throughput.py \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=test_2016_flickr.en \
        --config.tasks.translation.target_path=test_2016_flickr.de --slots=16
"""

from ml_collections import ConfigDict

from experiments.configs import multi30k


def get_config() -> ConfigDict:
    """The config."""
    config = multi30k.get_config()
    del config.methods.calm, config.methods.dvp_512
    return config
