"""full, calm and dvp on Multi30k test_2016_flickr, English to German, batch 1.

This is no table of the paper: a small checkpoint translates, which takes about 5 minutes on two CPU cores. Its
confidence is low, hence the threshold of 0.5. Result: the table in docs/results.md.

    python -m experiments.evaluate --config=experiments/configs/multi30k.py --workdir=runs/multi30k \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=test_2016_flickr.en \
        --config.tasks.translation.target_path=test_2016_flickr.de
"""

from ml_collections import ConfigDict

from experiments.configs.common import evaluation


def get_config() -> ConfigDict:
    """The config."""
    tasks = {"translation": {"source_path": None, "target_path": None}}
    return evaluation(tasks=tasks, threshold=0.5, prune_sizes=(64, 512))
