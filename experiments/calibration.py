"""Does pruning make confidence lie? Calibration of the whole-vocabulary and of the pruned softmax, depth by depth.

    python -m experiments.calibration --config=experiments/configs/demo.py --workdir=runs/calibration \
        --config.batch_size=16

For every dvp method of the config: ECE, MCE and reliability diagrams of each depth, against the full model's
choices (on its own texts) and against the reference (fed to the decoder token by token); and the lowest threshold
on the pruned scale at which the tokens that leave agree with the full model as often as those that leave at
--exit_threshold on the whole one. The diagrams are of the confidence that exits are decided by: of a difference of
probabilities ECE says how far it is from the chance of being right. Writes calibration.json, the diagrams and
report.html under --workdir; prints tables. Takes any config of experiments.evaluate. Seen: 49 seconds on two
busy CPU cores.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax.analysis.run import run_calibration
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where calibration.json and the plots go.", required=True)
_THRESHOLD = flags.DEFINE_float(
    "exit_threshold", 0.9, "On the whole vocabulary's scale.", lower_bound=0.0, upper_bound=1.0
)
_BINS = flags.DEFINE_integer("bins", 10, "Bins of the reliability diagrams.", lower_bound=1)


def main() -> None:
    """Traces the full model's texts and the references with and without pruning."""
    config = _CONFIG.value.to_dict()
    print(run_calibration(config, _WORKDIR.value, threshold=_THRESHOLD.value, bins=_BINS.value))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
