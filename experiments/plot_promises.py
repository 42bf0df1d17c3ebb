"""Draws measured against promised losses of several runs of experiments.select, and prints a table of them.

python -m experiments.plot_promises --results=runs/textual_0.01.json,runs/textual_0.05.json --output=promises.svg
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags

from dvp_jax.evaluate.selection import promises_table
from dvp_jax.report.plots import promised_against_seen
from dvp_jax.runs import launch

_RESULTS = flags.DEFINE_list("results", None, "Results of experiments.select, separated by commas.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Path of the SVG.", required=True)


def main() -> None:
    """Draws the plot and prints the table."""
    results = [json.loads(Path(path).read_text("utf-8")) for path in _RESULTS.value]
    promised_against_seen(results, Path(_OUTPUT.value))
    print(promises_table(results).markdown())


if __name__ == "__main__":
    launch.run(main)
