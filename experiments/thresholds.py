"""Which threshold at which depth? The smallest whose exits agree with the full model often enough.

    python -m experiments.thresholds --config=experiments/configs/demo.py --workdir=runs/thresholds \
        --config.batch_size=16 --share=0.98

For every calm and dvp method of the config (whole vocabulary, pruned vocabulary) and every measure that it takes:
at each depth the smallest threshold for which at least --share of the tokens that leave there are the full
model's, as in FlexEE. Writes thresholds.json and report.html under --workdir; prints tables. To evaluate what was
found for a task, beside the full model, and on another set where its path is changed:

    python -m experiments.evaluate --workdir=runs/tuned \
        --config=experiments/configs/tuned_thresholds.py:runs/thresholds/thresholds.json,squad

Takes any config of experiments.evaluate. Seen: 53 seconds on two CPU
cores.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax.analysis.run import run_thresholds
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where thresholds.json and report.html go.", required=True)
_SHARE = flags.DEFINE_float("share", 0.98, "Of the exits of each depth, that must agree with the full model.")


def main() -> None:
    """Traces the full model's own texts under every measure."""
    print(run_thresholds(_CONFIG.value.to_dict(), _WORKDIR.value, share=_SHARE.value))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
