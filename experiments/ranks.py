"""How early does the decoder know its choice? The evidence for pruning the vocabulary at a shallow depth.

    python -m experiments.ranks --config=experiments/configs/demo.py --workdir=runs/ranks \
        --config.batch_size=16

For every depth: the rank of the token that the full model chooses in the end, the share of tokens whose choice is
among the K likeliest, the mean confidence over the whole vocabulary, and how often the depth's own choice is the
final one. Writes ranks.json, plots of ranks, coverage and agreement for each task, and report.html under
--workdir; prints a table. Takes any config of experiments.evaluate. Seen: 27 seconds on two busy
CPU cores.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax.analysis.run import run_ranks
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where ranks.json and the plots go.", required=True)


def main() -> None:
    """Traces the full model's own texts and reports what each depth knew."""
    print(run_ranks(_CONFIG.value.to_dict(), _WORKDIR.value))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
