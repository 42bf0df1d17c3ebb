"""lossless beside full and dvp on Multi30k test_2016_flickr, English to German, batch 1.

This is no table of the paper. Rows called "recent" need common tokens beside the checkpoint. Result: the table in
docs/performance.md.

    python -m scripts.count_tokens --model=CHECKPOINT --text=train.de
    python -m experiments.evaluate --config=experiments/configs/multi30k_lossless.py --workdir=runs/lossless \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=test_2016_flickr.en \
        --config.tasks.translation.target_path=test_2016_flickr.de --config.limit=100
"""

from ml_collections import ConfigDict

from experiments.configs import multi30k


def get_config() -> ConfigDict:
    """The config."""
    config = multi30k.get_config()
    del config.methods.calm, config.methods.dvp_512
    drafts = {"method": "lossless", "threshold": 0.5, "min_exit_layer": 2, "prune_layer": 2}
    config.methods.lossless_4 = {**drafts, "max_waiting": 4}
    config.methods.lossless_8 = {**drafts, "max_waiting": 8}
    config.methods.recent_512 = {**drafts, "max_waiting": 8, "prune_rule": "recent", "prune_size": 512}
    return config
