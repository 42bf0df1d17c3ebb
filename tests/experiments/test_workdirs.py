"""What every launcher does with its --workdir: an empty one and one in use are refused before any work."""

import os

import pytest

from dvp_jax.runs.files import lock_workdir
from tests.launching import check_error, files_of, launch

DEMO = "--config=experiments/configs/demo.py"
SWEEP = "--config=experiments/configs/demo_sweep.py"
FINETUNE = "--config=experiments/configs/finetune_demo.py"
LAUNCHERS = {
    "calibration": [DEMO],
    "evaluate": [DEMO],
    "failures": [DEMO],
    "finetune": [FINETUNE],
    "finetune_meta": [FINETUNE, "--config.model=dvp_jax/demo/model"],
    "ranks": [DEMO],
    "reproduce": ["--only=squad"],
    "select": [SWEEP, "--task=squad"],
    "sweep": [SWEEP],
    "thresholds": [DEMO],
    "throughput": [DEMO],
    "vocab_scaling": ["--vocab_sizes=100", "--shape=t5-small", "--new_tokens=1", "--rounds=1"],
}


@pytest.mark.parametrize("name", sorted(LAUNCHERS))
def test_an_empty_workdir_is_refused(name):
    check_error(launch(name, "--workdir=", *LAUNCHERS[name]), "workdir is ''; allowed: the path of a folder")


@pytest.mark.parametrize("name", sorted(LAUNCHERS))
def test_a_workdir_that_another_run_has_locked_is_refused_and_left_as_it_was(name, tmp_path):
    with lock_workdir(tmp_path):
        run = launch(name, f"--workdir={tmp_path}", *LAUNCHERS[name])
    check_error(run, f"workdir {tmp_path} is in use by process {os.getpid()}; allowed: one")
    assert files_of(tmp_path) == [".lock"]
