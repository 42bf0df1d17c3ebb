"""Selects method, p, K and threshold: the cheapest setting of a grid whose texts are as good as promised.

    python -m experiments.select --config=experiments/configs/multi30k_select.py --workdir=runs/select \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=val.en \
        --config.tasks.translation.target_path=val.de --promise=textual --delta=0.05

With probability at least 1 - epsilon over the draw of the calibration examples, the promise holds on average for
texts like them (Learn then Test; `dvp_jax.evaluate.selection.select` says what the examples must be like). Takes
any config of experiments.sweep. In the workdir of a sweep nothing is decoded again.

Writes selected.json, which holds the certificate and which `dvp_jax.load_decode_config` loads. Prints the selected
setting, the guarantee, and the measured losses: on the calibration examples, and on those of --check_config.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax.evaluate.learn_then_test import P_VALUES
from dvp_jax.evaluate.selection import KINDS, Promise, select, selection_table
from dvp_jax.metrics.quality import MEASURES
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "The grid, and the calibration examples.")
_CHECK = config_flags.DEFINE_config_file("check_config", None, "Other examples, to measure the loss on.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder for results.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Path of the result. Default: selected.json under --workdir.")
_TASK = flags.DEFINE_string("task", None, "Which of the config's tasks, if it has several.")
_PROMISE = flags.DEFINE_enum(
    "promise", "textual", list(KINDS), "Compare with the full model's text, or with references."
)
_DELTA = flags.DEFINE_float("delta", 0.05, "What a text may lose on average.")
_EPSILON = flags.DEFINE_float("epsilon", 0.05, "Probability that the promise is broken.")
_MEASURE = flags.DEFINE_enum("measure", None, list(MEASURES), "Measure of quality. Default: the task's own.")
_P_VALUE = flags.DEFINE_enum(
    "p_value", "hoeffding_bentkus", list(P_VALUES), "Which p-value; exact_binomial is for exact_match."
)
_WITHOUT_GUARANTEE = flags.DEFINE_bool(
    "without_guarantee", False, "Select the cheapest within delta on these examples."
)


def main() -> None:
    """Selects a setting and prints it."""
    result = select(
        _CONFIG.value.to_dict(),
        _WORKDIR.value,
        Promise(_PROMISE.value, _DELTA.value, _EPSILON.value, _MEASURE.value, _P_VALUE.value),
        guarantee=not _WITHOUT_GUARANTEE.value,
        task=_TASK.value,
        check=_CHECK.value.to_dict() if _CHECK.value is not None else None,
        output=_OUTPUT.value,
    )
    print(result["returned"], result["statement"], selection_table(result).markdown(), sep="\n\n")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main, interrupted=launch.DECODED)
