"""Pre-trained T5-large on SamSum's validation split: K = 64 and 512, threshold 0.9, exits from p = 2 and from 7.

Published: exits from 7 give ROUGE-L 23.16 for calm (predecessor's blogpost.md, figure 8). The paper's 43.1 cannot
be of this model, which reaches 22.7 to 23.8 with exits from 7 or 19: see samsum_finetuned.py. Expect p = 2 to
fail: this model was not trained for early exits, and calm from depth 2 reached ROUGE-L 2.67, on 3 examples only
(predecessor's src/plots/plots_mn.ipynb). Ours: not run.
All figures with their sources are in `dvp_jax.evaluate.published`.

    python -m experiments.evaluate --config=experiments/configs/samsum.py --workdir=runs/samsum

The data set comes from the hub, or from a file by --config.tasks.samsum.path=validation.csv.
"""

from ml_collections import ConfigDict

from experiments.configs.common import paper


def get_config() -> ConfigDict:
    """The config."""
    return paper("samsum", "google-t5/t5-large", prune_layers=(2, 7))
