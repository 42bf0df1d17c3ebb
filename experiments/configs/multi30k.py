"""full, calm and dvp on Multi30k test_2016_flickr, English to German, batch 1.

Not a table of the paper: a small checkpoint's translation, for a run of minutes on two CPU cores. The
checkpoint's confidence is low, hence the threshold of 0.5.

    python -m experiments.evaluate --config=experiments/configs/multi30k.py --workdir=runs/multi30k \
        --config.model=CHECKPOINT --config.task.source_path=test_2016_flickr.en \
        --config.task.target_path=test_2016_flickr.de
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The config."""
    early = {"threshold": 0.5, "min_exit_layer": 2}
    pruned = {"method": "dvp", "prune_layer": 2, **early}
    return ConfigDict(
        {
            "model": config_dict.placeholder(str),
            "dtype": "float32",
            "task": {
                "name": "translation",
                "source_path": config_dict.placeholder(str),
                "target_path": config_dict.placeholder(str),
            },
            "methods": {
                "full": {"method": "full"},
                "calm": {"method": "calm", **early},
                "dvp_64": {"prune_size": 64, **pruned},
                "dvp_512": {"prune_size": 512, **pruned},
            },
            "batch_size": 1,
            "limit": config_dict.placeholder(int),
        }
    )
