"""Grids of settings, and what is refused before the model is read."""

from types import SimpleNamespace

import pytest

from dvp_jax.data import Example
from dvp_jax.evaluate import experiment
from dvp_jax.evaluate.experiment import open_experiment, sweep_methods
from tests.launching import files_of


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"fast": {}}, r"sweep has 'fast'; allowed: full, static, calm, dvp"),
        ({"calm": {"threshold": ()}}, r"sweep.calm.threshold is \(\); allowed: a list of at least one value"),
        ({"calm": {"threshold": 0.5}}, r"sweep.calm.threshold is 0.5; allowed: a list"),
        ({"calm": {"confidence": "meta"}}, r"sweep.calm.confidence is 'meta'; allowed: a list"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        sweep_methods(grid)


def test_dvp_exits_from_p_on_unless_the_grid_says_otherwise():
    cells = sweep_methods({"dvp": {"prune_layer": [1, 3], "prune_size": [8]}})
    assert [(c["prune_layer"], c["min_exit_layer"]) for c in cells.values()] == [(1, 1), (3, 3)]
    (cell,) = sweep_methods({"dvp": {"prune_layer": [1], "min_exit_layer": [3]}}).values()
    assert (cell["prune_layer"], cell["min_exit_layer"]) == (1, 3)


def config_of_rows(folder, rows: str) -> dict:
    (folder / "rows.csv").write_text("source,target\n" + rows)
    return {
        "model": str(folder / "no model"),
        "dtype": "float32",
        "tasks": {"text_to_text": {"path": str(folder / "rows.csv")}},
        "limit": None,
        "batch_size": 1,
        "methods": {"full": {}},
    }


def test_bad_data_are_refused_before_the_model_is_read(tmp_path):
    config = config_of_rows(tmp_path, "a,b,c\n")
    with pytest.raises(ValueError, match=r"rows\.csv, line 2 has 3 fields"), open_experiment(config, tmp_path):
        pass


def test_a_file_that_changes_while_the_model_is_read_changes_nothing(tmp_path, monkeypatch):
    config = config_of_rows(tmp_path, "a,b\n")

    def load_model(*_, **__):
        config_of_rows(tmp_path, "c,d\n")
        return SimpleNamespace(fingerprint="0", mesh=None)

    monkeypatch.setattr(experiment, "load_model", load_model)
    with open_experiment(config, tmp_path / "run") as opened:
        ((task, _),) = opened.tasks
        assert task.load() == [Example("0", "a", ("b",))]


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [("explore", -1, 0), ("explore", "all", 0), ("limit", 0, 1), ("batch_size", 0, 1), ("batch_size", 1.5, 1)],
)
def test_counts_that_cannot_be_are_refused_before_anything_is_written(tmp_path, field, value, least):
    config = {"model": "no such model", "batch_size": 1, "limit": None, "explore": 0, field: value}
    message = f"^config.{field} is {value!r}; allowed: an integer of at least {least}$"
    with pytest.raises(ValueError, match=message), open_experiment(config, tmp_path / "run"):
        pass
    assert files_of(tmp_path) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"batch_size": 2, "confidence_time": True},
            "config.batch_size is 2; allowed with config.confidence_time: 1",
        ),
        ({"tasks": {}}, "config.tasks is {}; allowed: the settings of at least one task"),
    ],
)
def test_batches_with_times_of_confidence_and_no_tasks_are_refused_before_the_model_is_read(
    tmp_path, fields, message
):
    config = {"model": "no such model", "batch_size": 1, "limit": None, **fields}
    with pytest.raises(ValueError, match=f"^{message}$"), open_experiment(config, tmp_path / "run"):
        pass
    assert files_of(tmp_path) == []
