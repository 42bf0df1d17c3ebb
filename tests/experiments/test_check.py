"""`python -m experiments.check` on a tiny random model."""

import pytest

import dvp_jax.evaluate.check
from dvp_jax.evaluate.check import Check
from tests.launching import SENTENCES, call, check_error, launch, make_checkpoint, run_launcher, start


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """A model of two layers: the checks compile many programs."""
    return make_checkpoint(tmp_path_factory.mktemp("shallow"), seed=0, num_layers=1, num_decoder_layers=2)


def test_check_finds_the_tiny_model_the_same_in_every_way(shallow):
    prompts = [f"--prompt=translate English to German: {sentence}" for sentence in SENTENCES[:2]]
    depths = "--min_exit_layer=1", "--prune_layer=1"
    run = start("-m", "experiments.check", f"--model={shallow.folder}", *prompts, *depths, "--max_new_tokens=5")
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert all(line.startswith("same ") for line in lines)
    for pair in (
        "teacher-forced",
        "static",
        "calm, threshold 1",
        "dvp, threshold 1",
        "lossless",
        "prune_size V",
        "branch_every",
    ):
        assert any(pair in line for line in lines)
    assert sum("alone" in line for line in lines) == 4


def run_check_that_finds_a_difference() -> None:
    same = Check("a = b", [])
    different = Check("this = that", ["row 3, position 7: one against two"])
    dvp_jax.evaluate.check.check_model = lambda *arguments: [same, different]
    run_launcher("check")


def test_check_prints_differences_and_exits_with_1(shallow):
    run = call(run_check_that_finds_a_difference, f"--model={shallow.folder}")
    assert run.returncode == 1
    assert [line.split() for line in run.stdout.splitlines()] == [
        ["same", "a", "=", "b"],
        ["differs", "this", "=", "that"],
        ["row", "3,", "position", "7:", "one", "against", "two"],
    ]


def run_check_that_prints_its_settings() -> None:
    dvp_jax.evaluate.check.check_model = lambda model, ids, mask, cfg: [Check(repr(cfg), [])]
    run_launcher("check")


def test_every_setting_is_a_flag(shallow):
    values = {
        "threshold": 0.25,
        "max_new_tokens": 9,
        "min_exit_layer": 1,
        "exit_depths": (1, 2),
        "prune_layer": 1,
        "prune_size": 7,
        "prune_rule": "mass",
        "prune_mass": 0.5,
        "confidence": "entropy",
        "max_waiting": 2,
        "capture": False,
        "branch_every": 3,
    }
    written = {name: ",".join(map(str, x)) if isinstance(x, tuple) else x for name, x in values.items()}
    flags = [f"--{name}={value}" for name, value in written.items()]
    run = call(run_check_that_prints_its_settings, f"--model={shallow.folder}", *flags)
    assert run.stdout == f"same     {dvp_jax.DecodeConfig(**values)!r}\n", run.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--exit_depths=all", "exit_depths is 'all'; allowed: "),
        ("--prune_size=none", "prune_size is None; allowed: an integer of at least 1"),
        ("--confidence=sure", "confidence is 'sure'; allowed: softmax_diff"),
    ],
)
def test_check_refuses_impossible_settings(shallow, flag, message):
    check_error(launch("check", f"--model={shallow.folder}", flag), message)
