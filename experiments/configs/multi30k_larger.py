"""full, calm, dvp and lossless on Multi30k test_2016_flickr, with the model of finetune_multi30k_larger.py.

p and the threshold were chosen on 200 sentences of the validation set. Result: the first table of "What it does on
real text" in docs/results.md, in 3 minutes on two CPU cores.

    python -m experiments.evaluate --config=experiments/configs/multi30k_larger.py --workdir=runs/multi30k_larger \
        --config.model=runs/finetune_multi30k_larger/model \
        --config.tasks.translation.source_path=test_2016_flickr.en \
        --config.tasks.translation.target_path=test_2016_flickr.de
"""

from ml_collections import ConfigDict

from experiments.configs.common import evaluation


def get_config() -> ConfigDict:
    """The config."""
    tasks = {"translation": {"source_path": None, "target_path": None}}
    config = evaluation(tasks=tasks, threshold=0.3, prune_sizes=(64,))
    config.methods.lossless = {**config.methods.dvp_64, "method": "lossless", "max_waiting": 4}
    return config
