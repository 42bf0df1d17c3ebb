"""Draws measured against promised losses of several runs of experiments.select, and prints a table of them.

python -m experiments.plot_promises --results=runs/textual_0.01.json,runs/textual_0.05.json --output=promises.svg
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from absl import flags

from dvp_jax.evaluate.selection import promises_table
from dvp_jax.report.plots import promised_against_seen
from dvp_jax.runs import launch
from dvp_jax.runs.files import as_written, check_output, read_json

_RESULTS = flags.DEFINE_list("results", None, "Results of experiments.select, separated by commas.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Path of the SVG.", required=True)


def _read(path: Path) -> Any:
    result = read_json(path)
    if result is None:
        raise FileNotFoundError(f"no file {path}")
    with as_written(path, "select"):
        promises_table([result])
    return result


def main() -> None:
    """Draws the plot and prints the table."""
    output = check_output(_OUTPUT.value)
    results = [_read(Path(path)) for path in _RESULTS.value]
    promised_against_seen(results, output)
    print(promises_table(results).markdown())


if __name__ == "__main__":
    launch.run(main)
