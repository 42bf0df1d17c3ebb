"""`python -m experiments.benchmark` on a tiny random model."""

import json

import numpy as np
import pytest

from tests.launching import check_error, launch


def test_benchmark_forces_the_exits_it_names_and_writes_what_it_prints(checkpoint, tmp_path):
    run = launch(
        "benchmark", f"--shape={checkpoint.folder}", "--depths=2,4,0", "--new_tokens=6", "--source_length=5",
        "--rounds=2", f"--results={tmp_path}", "--methods=full", "--methods=static", "--methods=dvp",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    (only,) = report["runs"]
    spread = np.random.default_rng(0).integers(2, 5, 6).mean()
    assert [(row["method"], row["mean_depth"]) for row in only["rows"]] == [
        ("full", 4), ("static", 2), ("static", 4), ("dvp", 2), ("dvp", 4), ("dvp", spread)
    ]  # fmt: skip
    for row in only["rows"]:
        assert row["least_ms"] <= row["ms_per_token"] <= row["most_ms"]
        bound = row["megabytes"] * 1e6 / report["runs"][0]["bandwidth"] * 1e3
        np.testing.assert_allclose(row["efficiency"], bound / row["ms_per_token"])
        assert f"| {row['ms_per_token']:{'.2f' if row['ms_per_token'] >= 5 else '.3f'}} |" in run.stdout
        np.testing.assert_allclose(row["speedup"], only["rows"][0]["ms_per_token"] / row["ms_per_token"])
    assert (tmp_path / "time_against_depth.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_benchmark_refuses_a_depth_that_is_not_there(checkpoint):
    run = launch("benchmark", f"--shape={checkpoint.folder}", "--depths=9")
    check_error(run, "depths is [9]", "from 2 to 4")


@pytest.mark.slow
def test_benchmark_compares_choices_of_exit_depths(checkpoint):
    run = launch(
        "benchmark", f"--shape={checkpoint.folder}", "--depths=3", "--exit_depths=0,2", "--new_tokens=2",
        "--source_length=4", "--rounds=1", "--methods=dvp",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    rows = [line.split(" | ")[:2] for line in run.stdout.splitlines() if line.startswith("| dvp")]
    assert rows == [["| dvp", "3"], ["| dvp exit_depths 2", "4"]]


def test_benchmark_refuses_exit_depths_that_are_no_integers(checkpoint):
    run = launch("benchmark", f"--shape={checkpoint.folder}", "--exit_depths=0,some")
    check_error(run, "exit_depths is 0,some", "integers")
