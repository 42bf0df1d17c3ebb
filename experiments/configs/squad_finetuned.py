"""The paper's authors' T5-large for SQuAD: p = 2, K = 64 and 512, threshold 0.9.

Published: exits from 2 give F1 89.71 for calm (predecessor's blogpost.md, figure 7). F1 90.6 for dvp with K = 64
(arXiv 2410.18952, results) is inferred to be of this model with p = 2; it may be of the pre-trained one with p = 7
instead. Ours: not run. All figures with their sources are in `dvp_jax.evaluate.published`.

    python -m experiments.evaluate --config=experiments/configs/squad_finetuned.py --workdir=runs/squad_finetuned

The data set comes from the hub, or from a file by --config.tasks.squad.path=dev-v1.1.json.
"""

from ml_collections import ConfigDict

from experiments.configs.common import paper


def get_config() -> ConfigDict:
    """The config."""
    return paper("squad", "jvelja/t5-squad")
