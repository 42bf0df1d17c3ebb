"""`python -m experiments.throughput`: refilled slots against fixed batches."""

import json
import math

import numpy as np
import pytest

from dvp_jax.bench.throughput import sort
from tests.launching import NUM_LAYERS, launch, write_configs

SCHEDULES = ["fixed", "given", "source_length", "text_length", "mean_exit"]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What the launcher writes and prints for the sources in every order, with one row and with three."""
    folder = tmp_path_factory.mktemp("throughput")
    write_configs(folder, 11, config="del config.methods.calm; return config")
    orders = [f"--orders={name}" for name in SCHEDULES[1:]]
    run = launch(
        "throughput",
        f"--config={folder / 'config.py'}",
        f"--workdir={folder / 'run'}",
        "--slots=1,3",
        "--rounds=1",
        *orders,
    )
    assert run.returncode == 0, run.stderr
    return json.loads((folder / "run" / "throughput.json").read_text())["rows"], run.stdout


@pytest.mark.slow
def test_every_method_number_of_rows_and_schedule_is_compared_on_the_same_texts(launched):
    rows, printed = launched
    compared = [(row["name"], row["rows"], row["schedule"]) for row in rows]
    assert sorted(compared) == sorted(
        (name, size, schedule) for name in ("full", "dvp_8") for size in (1, 3) for schedule in SCHEDULES
    )
    assert all(row["same"] == row["texts"] == 11 for row in rows)
    assert len(printed.splitlines()) == 2 + len(rows)


@pytest.mark.slow
def test_a_step_runs_the_layers_of_its_deepest_row(launched):
    rows, _ = launched
    for row in rows:
        layers = row["layers_per_step"]
        if row["name"] == "full":
            assert layers == row["mean_exit"] == NUM_LAYERS
        elif row["rows"] == 1:
            assert math.isclose(layers, row["mean_exit"])
            assert layers < NUM_LAYERS, "else nothing is shown"
        else:
            assert row["mean_exit"] < layers <= NUM_LAYERS
        assert row["rows_per_step"] == 1 if row["rows"] == 1 else 1 < row["rows_per_step"] <= 3


@pytest.mark.slow
def test_speed_up_is_against_fixed_batches_of_the_same_rows(launched):
    rows, _ = launched
    fixed = {(row["name"], row["rows"]): row["tokens_per_s"] for row in rows if row["schedule"] == "fixed"}
    for row in rows:
        assert math.isclose(row["speed_up"], row["tokens_per_s"] / fixed[row["name"], row["rows"]])


def test_orders():
    mask = np.array([[1, 1, 1], [1, 0, 0], [1, 1, 0]], bool)
    texts = [([5], [2]), ([5, 6, 1], [1, 1, 1]), ([5, 1], [4, 2])]
    assert sort("given", mask, texts).tolist() == [0, 1, 2]
    assert sort("source_length", mask, texts).tolist() == [0, 2, 1]
    assert sort("text_length", mask, texts).tolist() == [1, 2, 0]
    assert sort("mean_exit", mask, texts).tolist() == [1, 0, 2]
