"""What was promised against what was seen, of several runs of experiments.select: a plot, and the table it prints.

python -m experiments.plot_promises --results=runs/textual_0.01.json,runs/textual_0.05.json --output=promises.svg
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags

from dvp_jax.evaluate.selection import promises_table
from dvp_jax.report.plots import promised_against_seen
from dvp_jax.runs import launch

_RESULTS = flags.DEFINE_list(
    "results", None, "--output of experiments.select, separated by commas.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "The SVG.", required=True)


def main() -> None:
    """Draws the promises and prints their table."""
    results = [json.loads(Path(path).read_text("utf-8")) for path in _RESULTS.value]
    promised_against_seen(results, Path(_OUTPUT.value))
    print(promises_table(results))


if __name__ == "__main__":
    launch.run(main)
