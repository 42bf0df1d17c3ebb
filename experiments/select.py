"""Chooses method, p, K and threshold: the cheapest setting of a grid whose texts are as good as promised.

    python -m experiments.select --config=experiments/configs/multi30k_select.py --workdir=runs/select \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=val.en \
        --config.tasks.translation.target_path=val.de --promise=textual --delta=0.05

With probability at least 1 - epsilon over the draw of the calibration examples, the promise holds on average for
texts like them (Learn then Test; `dvp_jax.evaluate.selection.select` says what that asks of the examples). Writes
selected.json, which `dvp_jax.load_decode_config` loads, with the certificate; says what it returns and what was
seen of it, with --check_config on other examples too. Takes any config of experiments.sweep; in a sweep's workdir
nothing is decoded again.
"""

from __future__ import annotations

from absl import flags
from ml_collections import config_flags

from dvp_jax.evaluate.learn_then_test import P_VALUES
from dvp_jax.evaluate.selection import KINDS, Promise, select, selection_table
from dvp_jax.metrics.quality import MEASURES
from dvp_jax.runs import launch

_CONFIG = config_flags.DEFINE_config_file("config", None, "The grid and the calibration examples.")
_CHECK = config_flags.DEFINE_config_file("check_config", None, "Other examples, to see it kept.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where results go.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "Where the result goes instead of selected.json under --workdir.")
_TASK = flags.DEFINE_string("task", None, "Which of the config's tasks, where it has several.")
_PROMISE = flags.DEFINE_enum("promise", "textual", list(KINDS), "Against the full model's text, or references.")
_DELTA = flags.DEFINE_float("delta", 0.05, "What a text may lose on average.")
_EPSILON = flags.DEFINE_float("epsilon", 0.05, "How often the promise may be broken.")
_MEASURE = flags.DEFINE_enum("measure", None, list(MEASURES), "Of quality; the task's own if not given.")
_P_VALUE = flags.DEFINE_enum("p_value", "hoeffding_bentkus", list(P_VALUES), "exact_binomial is for exact_match.")
_WITHOUT_GUARANTEE = flags.DEFINE_bool("without_guarantee", False, "The cheapest within delta on these examples.")


def main() -> None:
    """Selects as the flags say."""
    result = select(
        _CONFIG.value.to_dict(),
        _WORKDIR.value,
        Promise(_PROMISE.value, _DELTA.value, _EPSILON.value, _MEASURE.value, _P_VALUE.value),
        guarantee=not _WITHOUT_GUARANTEE.value,
        task=_TASK.value,
        check=_CHECK.value.to_dict() if _CHECK.value is not None else None,
        output=_OUTPUT.value,
    )
    print(f"{result['returned']}\n\n{result['statement']}\n\n{selection_table(result)}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
