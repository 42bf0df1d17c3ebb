"""Which confidence measure? All of them, with calm, dvp and shallow_deep, between full and oracle. Multi30k.

Not a table of the paper, which has `softmax_diff` alone. No one threshold suits all measures, hence so many. Seen:
the README's picture, on the first 100 sentences (--config.limit=100 --config.explore=0). `meta` asks a classifier
that is trained first:

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
    of_logits, of_states = tuple(LOGIT_MEASURES), tuple(HIDDEN_MEASURES)
    return sweep(
        multi30k.get_config(),
        {
            "full": {},
            "oracle": {"oracle_states": ("own", "full"), "min_exit_layer": (1,)},
            "calm": {"confidence": of_logits + of_states, **thresholds},
            "dvp": {"confidence": of_logits, "prune_layer": (2,), "prune_size": (64,), **thresholds},
            "shallow_deep": {"min_exit_layer": (3,), **thresholds},
        },
    )
