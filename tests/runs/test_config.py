"""Configs that are for another launcher."""

import re

import pytest

from dvp_jax.analysis.ranks import Ranks
from dvp_jax.analysis.run import run_analysis
from dvp_jax.evaluate.experiment import run_evaluation, run_sweep
from dvp_jax.evaluate.selection import Promise, select
from dvp_jax.runs.config import TRAINING
from dvp_jax.train.finetune import finetune
from tests.launching import files_of

EVALUATION = {"model": "none", "dtype": "float32", "tasks": {"squad": {}}, "methods": {"full": {}}}
SWEEP = {"model": "none", "dtype": "float32", "tasks": {"squad": {}}, "sweep": {"full": {}}}


@pytest.mark.parametrize(
    ("run", "config", "message"),
    [
        (run_sweep, EVALUATION, "config has no sweep; allowed: a config of experiments.sweep"),
        (select, EVALUATION, "config has no sweep; allowed: a config of experiments.sweep"),
        (run_analysis, SWEEP, "config has no methods; allowed: a config of experiments.evaluate"),
        (
            run_evaluation,
            {"model": "none"},
            "config has no dtype, tasks, methods; allowed: a config of experiments.e",
        ),
        (
            finetune,
            EVALUATION,
            "config has no shape, tokenizer, validation_tasks, limit, validation_limit, train; ",
        ),
        (run_evaluation, {**EVALUATION, "tasks": []}, "config.tasks is []; allowed: at least one"),
        (run_evaluation, {**EVALUATION, "methods": {}}, "config.methods is {}; allowed: at least one"),
        (
            run_evaluation,
            {**EVALUATION, "methods": ["full"]},
            "config.methods is ['full']; allowed: settings under each",
        ),
        (
            run_sweep,
            {**SWEEP, "sweep": {"dvp": None}},
            "config.sweep is {'dvp': None}; allowed: settings under",
        ),
        (run_sweep, {**SWEEP, "sweep": {}}, "config.sweep is {}; allowed: at least one"),
        (run_evaluation, {**SWEEP, "sweep": None}, "config.sweep is None; allowed: at least one"),
        (
            finetune,
            {**dict.fromkeys(TRAINING), "tasks": {"squad": {}}, "validation_tasks": ["squad"]},
            "config.validation_tasks is ['squad']; allowed: settings under",
        ),
    ],
)
def test_a_config_that_lacks_something_as_one_for_another_launcher_does_is_refused(run, config, message, tmp_path):
    more = {select: [Promise()], run_analysis: [Ranks()]}.get(run, [])
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        run(config, tmp_path / "run", *more)
    assert files_of(tmp_path) == []
