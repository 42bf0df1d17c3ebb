"""Pre-trained T5-large on SQuAD: K = 64 and 512, threshold 0.9, exits from p = 2 and from 7.

Published: exits from 7 give F1 90.43 for calm (predecessor's blogpost.md, figure 7). F1 90.6 for dvp with K = 64
(arXiv 2410.18952, results) may be of this model with p = 7, or of the fine-tuned one: the paper's checkpoint and p
are inferred. Expect p = 2 to fail: this model was not trained for early exits, and calm from depth 2 reached F1
38.78 on 100 examples (predecessor's src/plots/plots_mn.ipynb). Ours: not run.
All figures with their sources are in `dvp_jax.evaluate.published`.

    python -m experiments.evaluate --config=experiments/configs/squad.py --workdir=runs/squad

The data set comes from the hub, or from a file by --config.tasks.squad.path=dev-v1.1.json.
"""

from ml_collections import ConfigDict

from experiments.configs.common import paper


def get_config() -> ConfigDict:
    """The config."""
    return paper("squad", "google-t5/t5-large", prune_layers=(2, 7))
