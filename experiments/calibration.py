"""Does pruning make confidence lie? Reliability of confidence over the full and the pruned vocabulary.

    python -m experiments.calibration --config=experiments/configs/demo.py --workdir=runs/calibration \
        --config.batch_size=16

Reports for every dvp method of the config:

- ECE, MCE and reliability diagrams of each depth, against the full model's tokens (on its own texts) and against
  the reference (fed to the decoder token by token). They are about the confidence that decides exits. If that is a
  difference of probabilities, ECE says how far it is from the chance of being right.
- The lowest threshold on the pruned vocabulary at which the exiting tokens agree with the full model as often as
  those that exit at --exit_threshold on the full vocabulary.

Writes calibration.json, the diagrams and report.html under --workdir. Prints the tables. Takes any config of
experiments.evaluate. This command took 49 seconds on two busy CPU cores.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dvp_jax.analysis.calibration import Reliability
from dvp_jax.analysis.run import run_analysis
from dvp_jax.report.table import print_report
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for calibration.json and the plots.", required=True)
_THRESHOLD = flags.DEFINE_float(
    "exit_threshold", 0.9, "A threshold on the full vocabulary.", lower_bound=0.0, upper_bound=1.0
)
_BINS = flags.DEFINE_integer("bins", 10, "Number of bins of the reliability diagrams.", lower_bound=1)


def main() -> None:
    """Runs the analysis and prints its tables."""
    question = Reliability(_THRESHOLD.value, _BINS.value)
    sections = run_analysis(_CONFIG.value.to_dict(), _WORKDIR.value, question)
    print_report(sections, Path(_WORKDIR.value) / "report.html")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
