"""Which tokens does pruning lose? Those whose full-model choice is not among the K kept at depth p.

    python -m experiments.failures --config=experiments/configs/demo.py --workdir=runs/failures \
        --config.batch_size=16

For every dvp method of the config: how often it happens by kind of token, letter case, frequency and place, with
95 % intervals from resampling texts; what the pruned decoder produced instead, and whether its text went another
way from there; worked examples. Writes failures.json, a plot of the rates for each task and method, and
report.html under --workdir; prints tables. Takes any config of experiments.evaluate. Seen: 38 seconds on two
busy CPU cores.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax.analysis.run import run_failures
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where failures.json and the plots go.", required=True)
_EXAMPLES = flags.DEFINE_integer("examples", 10, "Worked examples to print for each method.", lower_bound=0)


def main() -> None:
    """Traces the full model's own texts and compares each pruned decoder's with them."""
    print(run_failures(_CONFIG.value.to_dict(), _WORKDIR.value, examples=_EXAMPLES.value))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
