"""Which confidence measure? All of them, with calm, dvp and shallow_deep, between full and oracle. Multi30k.

This is no table of the paper, which has `softmax_diff` only. No single threshold suits all measures, hence so
many. Result: the figure in docs/results.md, on the first 100 sentences (--config.limit=100 --config.explore=0).
`meta` needs a classifier that is trained first:

    python -m experiments.finetune_meta --config=experiments/configs/finetune_multi30k.py --workdir=runs/meta \
        --config.model=CHECKPOINT [the training data, as that config says]
    python -m experiments.evaluate --config=experiments/configs/multi30k_measures.py --workdir=runs/measures \
        --config.model=runs/meta/model --config.tasks.translation.source_path=test_2016_flickr.en \
        --config.tasks.translation.target_path=test_2016_flickr.de
"""

from ml_collections import ConfigDict

from dvp_jax.exits.confidence import HIDDEN_MEASURES, LOGIT_MEASURES
from experiments.configs import multi30k
from experiments.configs.common import sweep


def get_config() -> ConfigDict:
    """The config."""
    thresholds = {"threshold": (0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)}
    logit_measures, hidden_measures = tuple(LOGIT_MEASURES), tuple(HIDDEN_MEASURES)
    return sweep(
        multi30k.get_config(),
        {
            "full": {},
            "oracle": {"oracle_states": ("own", "full"), "min_exit_layer": (1,)},
            "calm": {"confidence": logit_measures + hidden_measures, **thresholds},
            "dvp": {"confidence": logit_measures, "prune_layer": (2,), "prune_size": (64,), **thresholds},
            "shallow_deep": {"min_exit_layer": (3,), **thresholds},
        },
    )
