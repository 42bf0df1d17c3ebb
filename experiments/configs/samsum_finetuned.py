"""The paper's authors' T5-large for SamSum, on its validation split: p = 2, K = 64 and 512, threshold 0.9.

Published: exits from 2 give ROUGE-L 42.76 for calm (predecessor's blogpost.md, figure 8). ROUGE-L 43.1 for dvp
with K = 512 (arXiv 2410.18952, results; the middle of a bootstrap) is inferred to be of this model with p = 2.
Ours: not run. All figures with their sources are in `dvp_jax.evaluate.published`.

    python -m experiments.evaluate --config=experiments/configs/samsum_finetuned.py --workdir=runs/samsum_finetuned

The data set comes from the hub, or from a file by --config.tasks.samsum.path=validation.csv.
"""

from ml_collections import ConfigDict

from experiments.configs.common import paper


def get_config() -> ConfigDict:
    """The config."""
    return paper("samsum", "jvelja/t5-samsum")
