"""Does the int8 copy of the unembedding pay? full, calm, and dvp that reads each form of W, on Multi30k, batch 1.

This is no table of the paper. Result: in docs/performance.md and docs/results.md.

    python -m experiments.evaluate --config=experiments/configs/multi30k_unembedding.py --workdir=runs/forms \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=test_2016_flickr.en \
        --config.tasks.translation.target_path=test_2016_flickr.de --config.limit=150 --config.confidence_time=True
"""

from ml_collections import ConfigDict

from experiments.configs import multi30k


def get_config() -> ConfigDict:
    """The config."""
    config = multi30k.get_config()
    for name in ("dvp_64", "dvp_512"):
        for form in ("float", "int8"):
            config.methods[f"{name}_{form}"] = {**config.methods[name], "unembedding": form}
        del config.methods[name]
    return config
