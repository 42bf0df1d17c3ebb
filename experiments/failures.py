"""Which tokens does pruning lose? Those whose full-model choice is not among the K kept at depth p.

    python -m experiments.failures --config=experiments/configs/demo.py --workdir=runs/failures \
        --config.batch_size=16

Reports for every dvp method of the config: how often tokens are lost, by kind, letter case, frequency and
position, with 95 % intervals from resampling texts; what the pruned decoder produced instead; and examples in
which its text differs from there on. Writes failures.json, a plot for each task and method, and report.html
under --workdir. Prints the tables. Takes any config of experiments.evaluate. This command took 38 seconds on two
busy CPU cores.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags
from ml_collections import config_flags

from dvp_jax.analysis.failures import Failures
from dvp_jax.analysis.run import run_analysis
from dvp_jax.report.table import print_report
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for failures.json and the plots.", required=True)
_EXAMPLES = flags.DEFINE_integer("examples", 10, "How many lost tokens to print for each method.", lower_bound=0)


def main() -> None:
    """Runs the analysis and prints its tables."""
    sections = run_analysis(_CONFIG.value.to_dict(), _WORKDIR.value, Failures(_EXAMPLES.value))
    print_report(sections, Path(_WORKDIR.value) / "report.html")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
