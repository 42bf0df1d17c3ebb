"""How does the cost of confidence grow with the vocabulary, with and without pruning?

    python -m experiments.vocab_scaling --workdir=runs/vocab_scaling --new_tokens=16 --rounds=3

Times one model shape with vocabularies of 8,000 to 256,000 tokens and random weights; every token exits at the
same depth. The time of confidence is what a token takes beyond `static`, which exits at that depth without
computing any. All methods read the float unembedding. Where `dvp` by itself would read the int8 copy of it
(`DecodeConfig.unembedding`), that is timed too, and can be faster than `static`. FLOPs are given as the paper's
code counts them, and as unembedding products beyond the single one of `static`.

How much of a vocabulary must be kept is a question about a trained model. With any config of experiments.evaluate,

    python -m experiments.vocab_scaling --workdir=runs/vocab_scaling --new_tokens=16 --rounds=3 \
        --config=experiments/configs/demo.py --config.batch_size=16

also finds the K that keeps 99 % of the full model's choices, for each `prune_layer` of the config. Writes
vocab_scaling.json, a plot and report.html under --workdir; prints tables. Takes 6 minutes on two busy CPU cores,
without the int8 copy.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dvp_jax.bench.vocabulary_scaling import run_vocabulary_scaling
from dvp_jax.report.table import print_report
from dvp_jax.runs import launch
from dvp_jax.t5.config import SHAPES

_CONFIG = config_flags.DEFINE_config_file("config", None, "A trained model: how much of its vocabulary is needed.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where vocab_scaling.json and the plot go.", required=True)
_SIZES = flags.DEFINE_list("vocab_sizes", "8000,16000,32000,64000,128000,256000", "Vocabularies to time.")
_EXIT = flags.DEFINE_integer("exit_layer", None, "The depth at which every token exits. Unset: half the layers.")
_SHAPE = flags.DEFINE_string("shape", "t5-base", f"The model: {', '.join(SHAPES)}.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Dtype of the weights.")
_BATCH = flags.DEFINE_integer("batch", 1, "Rows decoded together.", lower_bound=1)
_PRUNE_SIZE = flags.DEFINE_integer("prune_size", 64, "K, the tokens that `dvp` keeps.", lower_bound=1)
_SOURCE = flags.DEFINE_integer("source_length", 256, "Tokens of each source.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens that each row generates.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds over all methods.", lower_bound=1)


def main() -> None:
    """Times confidence, and looks at a trained model if there is one."""
    sections = run_vocabulary_scaling(
        _CONFIG.value.to_dict() if _CONFIG.value else None,
        _WORKDIR.value,
        vocab_sizes=launch.integers(_SIZES, least=1),
        exit_layer=_EXIT.value,
        rounds=_ROUNDS.value,
        shape=_SHAPE.value,
        dtype=_DTYPE.value,
        batch=_BATCH.value,
        prune_size=_PRUNE_SIZE.value,
        source_length=_SOURCE.value,
        new_tokens=_TOKENS.value,
    )
    print_report(sections, Path(_WORKDIR.value) / "report.html")


if __name__ == "__main__":
    launch.run(main)
