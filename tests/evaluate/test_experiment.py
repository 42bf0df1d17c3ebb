"""Grids of settings, and what is refused before the model is read."""

import pytest

from dvp_jax.data import Example
from dvp_jax.evaluate import experiment
from dvp_jax.evaluate.experiment import Experiment, decode_cells, open_experiment, run_evaluation, sweep_methods
from dvp_jax.runs.predictions import Predictions
from dvp_jax.runs.processes import Process
from tests.launching import Sentences, files_of
from tests.train.helpers import tiny_model


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
        "methods": {"full": {"method": "full"}},
    }


def test_bad_data_are_refused_before_the_model_is_read(tmp_path):
    config = config_of_rows(tmp_path, "a,b,c\n")
    with pytest.raises(ValueError, match=r"rows\.csv, line 2 has 3 fields"), open_experiment(config, tmp_path):
        pass


def test_a_file_that_changes_while_the_model_is_read_changes_nothing(tmp_path, monkeypatch):
    config = config_of_rows(tmp_path, "a,b\n")

    def load_model(*_, **__):
        config_of_rows(tmp_path, "c,d\n")
        return tiny_model()

    monkeypatch.setattr(experiment, "load_model", load_model)
    with open_experiment(config, tmp_path / "run") as opened:
        ((task, _),) = opened.tasks
        assert task.load() == [Example("0", "a", ("b",))]


@pytest.mark.filterwarnings("ignore:.*results.json is damaged")
def test_a_run_that_stops_while_it_writes_leaves_no_results_of_an_earlier_one(tmp_path, monkeypatch):
    config = config_of_rows(tmp_path, "a,b\n")
    for name in ("results.json", "report.html"):
        (tmp_path / name).write_text("of an earlier run")

    def stop(*_):
        assert (tmp_path / "traces.jsonl").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "load_model", lambda *_, **__: tiny_model())
    monkeypatch.setattr(experiment, "evaluate", lambda *_, **__: ([], []))
    monkeypatch.setattr(experiment, "trace_texts", lambda *_: [])
    monkeypatch.setattr(Predictions, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        run_evaluation(config, tmp_path)
    assert not {"results.json", "report.html"} & set(files_of(tmp_path))


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


def test_the_time_of_confidence_is_refused_for_batches_before_the_model_is_read(tmp_path):
    config = {"model": "no such model", "batch_size": 2, "limit": None, "confidence_time": True}
    message = r"^config.batch_size is 2; allowed with config.confidence_time: 1$"
    with pytest.raises(ValueError, match=message), open_experiment(config, tmp_path / "run"):
        pass
    assert files_of(tmp_path) == []


def test_settings_that_do_not_fit_the_model_are_refused_as_soon_as_it_is_read(tmp_path):
    (tmp_path / "rows.csv").write_text("source,target\na,b\n")
    config = {
        "model": "a model of two layers",
        "dtype": "float32",
        "tasks": {"text_to_text": {"path": str(tmp_path / "rows.csv")}},
        "methods": {"deep": {"method": "dvp", "prune_layer": 9, "min_exit_layer": 9, "prune_size": 8}},
    }
    message = r"^prune_layer is 9; allowed: an integer from 1 to 1 for this model$"
    with pytest.raises(ValueError, match=message), open_experiment(config, tmp_path, model=tiny_model()):
        pass
    with open_experiment(config, tmp_path, model=tiny_model(), decodes=False):
        pass  # as for ranks, which reads every depth


def test_each_process_may_decode_one_cell_but_no_process_may_have_none(tmp_path, monkeypatch):
    def decode(model, tasks, name, config):
        return {
            "rows": [{"task": "sentences", "method": name, "ms_per_token": 1.0}],
            "traces": [],
            "predictions": [],
        }

    monkeypatch.setattr(experiment, "_decode_cell", decode)
    monkeypatch.setattr(Process, "wait", lambda process: None)
    cells = {"full": {}, "dvp": {}}

    def cells_of(index, count):
        tasks = [(Sentences([]), cells)]
        made_by = {"config": {"methods": cells}}
        return list(decode_cells(Experiment(tmp_path, tiny_model(), tasks, made_by, Process(index, count))))

    with pytest.raises(ValueError, match=r"^num_processes is 3; allowed: at most the cells, 2$"):
        cells_of(2, 3)
    with pytest.raises(OSError, match=r"cells/full.json is missing; allowed: a workdir that all processes share$"):
        cells_of(1, 2)  # it decodes "dvp" and waits for "full" of process 0
    assert [cell["rows"][0]["method"] for cell in cells_of(0, 2)] == ["full", "dvp"]
