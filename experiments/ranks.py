"""How early does the decoder know its choice? If early, the vocabulary can be pruned at a shallow depth.

    python -m experiments.ranks --config=experiments/configs/demo.py --workdir=runs/ranks \
        --config.batch_size=16

Reports for every depth: the rank of the token that the full model chooses, the share of tokens whose choice is
among the K likeliest, the mean confidence over the full vocabulary, and how often the depth's likeliest token is
the choice. Writes ranks.json, three plots for each task, and report.html under --workdir. Prints a table for
each task. Takes any config of experiments.evaluate. This command took 27 seconds on two busy CPU cores.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dvp_jax.analysis.ranks import Ranks
from dvp_jax.analysis.run import run_analysis
from dvp_jax.report.table import print_report
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for ranks.json and the plots.", required=True)


def main() -> None:
    """Runs the analysis and prints its tables."""
    sections = run_analysis(_CONFIG.value.to_dict(), _WORKDIR.value, Ranks())
    print_report(sections, Path(_WORKDIR.value) / "report.html")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
