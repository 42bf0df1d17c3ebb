"""Experiments: run an evaluation or a sweep as a config says, and write results and a report into a folder."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dvp_jax.data import make_task
from dvp_jax.data.task import LoadedTask, Task
from dvp_jax.decode.api import decode_policy
from dvp_jax.decode.config import METHODS, DecodeConfig
from dvp_jax.evaluate.evaluation import evaluate, make_methods
from dvp_jax.evaluate.reports import report_evaluation, report_sweep
from dvp_jax.evaluate.results import compare_with_full
from dvp_jax.evaluate.traces import trace_texts
from dvp_jax.exits.policy import check_integer
from dvp_jax.runs import processes
from dvp_jax.runs.config import EVALUATION, SWEEP, check_fields
from dvp_jax.runs.files import (
    file_name,
    lock_workdir,
    read_sealed,
    remove_partial_files,
    seal,
    write_json,
    write_json_lines,
    write_whole,
)
from dvp_jax.runs.predictions import Line, Predictions
from dvp_jax.runs.processes import ALONE, Process
from dvp_jax.runs.provenance import code_fingerprint, digest, provenance, versions
from dvp_jax.t5.load import Model, load_model
from dvp_jax.t5.sharding import make_mesh, spans_processes


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What an evaluation config names, checked and loaded.

    Attributes:
        workdir: the folder for results, locked by this process.
        model: the loaded model.
        tasks: each task with the settings to decode it with, by name.
        made_by: the provenance of the results, as JSON values.
        process: this process among those of the run.
    """

    workdir: Path
    model: Model
    tasks: list[tuple[Task, dict[str, DecodeConfig]]]
    made_by: dict[str, Any]
    process: Process = ALONE


@contextlib.contextmanager
def open_experiment(
    config: Mapping[str, Any],
    workdir: str | Path,
    *,
    only: str | None = None,
    decodes: bool = True,
    seed: int | None = None,
    model: Model | None = None,
) -> Iterator[Experiment]:
    """Locks the folder for results, checks an evaluation config, and then loads the model.

    Args:
        config: an evaluation config, as `experiments/configs/common.py` makes it.
        workdir: the folder. It is made if it is missing.
        only: name of a method. Settings of other methods are skipped. None keeps all settings.
        decodes: whether texts are decoded with the settings, so that these must fit the model.
        seed: seed of random draws, for the provenance.
        model: the model that the config names, if it is loaded already.

    Yields:
        The experiment. The folder is unlocked at the end.

    Raises:
        ValueError: a field is missing, no model or no task is named, an unknown task or field, an impossible
            value, no settings of the method `only`, a bad checkpoint, settings that do not fit the model, or
            processes that differ in code, versions, config, model or data.
        OSError: workdir cannot be made or written, or is in use.
    """
    if not config.get("model"):
        raise ValueError("config.model is not set; allowed: a checkpoint folder or a hub id (--config.model=...)")
    config = {"batch_size": 1, "limit": None, "explore": 0, **config}
    for name, least in (("batch_size", 1), ("limit", 1), ("explore", 0)):
        if config[name] is not None:
            check_integer(f"config.{name}", config[name], least, None)
    if config.get("confidence_time") and config["batch_size"] > 1:
        raise ValueError(f"config.batch_size is {config['batch_size']}; allowed with config.confidence_time: 1")
    check_fields(config, EVALUATION)
    process = processes.current()
    with lock_workdir(workdir, process.index) as folder:
        process.agree({"versions": versions(), "config": config, "code": code_fingerprint()})
        tasks = [make_task(name, **fields) for name, fields in config["tasks"].items()]
        methods = [make_methods(config["methods"], task.max_new_tokens) for task in tasks]
        if only is not None:
            methods = [{name: cfg for name, cfg in each.items() if cfg.name == only} for each in methods]
            if not all(methods):
                names = ", ".join(config["methods"])
                raise ValueError(f"config.methods has {names}, none of method {only!r}; allowed: at least one")
        loaded = [LoadedTask(task) for task in tasks]  # bad data is refused before the model is read
        if model is None:
            mesh = make_mesh(config.get("mesh"))
            model = load_model(config["model"], config["dtype"], progress=True, mesh=mesh)
        for cfg in itertools.chain.from_iterable(each.values() for each in methods if decodes):
            decode_policy(model, cfg)  # settings that do not fit the model are refused before anything is decoded
        made_by = provenance(config, model, loaded, seed)
        process.agree({name: made_by[name] for name in ("model_fingerprint", "data_fingerprint", "device")})
        process = dataclasses.replace(process, together=spans_processes(model.mesh))
        yield Experiment(folder, model, list(zip(loaded, methods, strict=True)), made_by, process)


def run_evaluation(config: Mapping[str, Any], workdir: str | Path) -> list[dict[str, Any]]:
    """Decodes the tasks of a config with all its methods.

    Writes results.json, predictions.jsonl, traces.jsonl and report.html with its plots.

    An interrupted run continues where it stopped, and a finished run decodes nothing again, as long as config,
    model, data, code and device are the same. The methods of a sweep's config are the cells of its grid. They are
    decoded in turn, batch by batch, so that their times can be compared.

    Several processes decode a part of the batches each. If the config's mesh needs more devices than one process
    has, they decode all batches together. Process 0 writes the results.

    Args:
        config: an evaluation or sweep config, as `experiments/configs/common.py` makes it.
        workdir: the folder for results. It is made if it is missing.

    Returns:
        The rows of results.json.

    Raises:
        ValueError: bad settings or data.
        OSError: a file is missing, or workdir is in use or cannot be written.
    """
    if "sweep" in config:
        check_fields(config, SWEEP)
        config = {**config, "methods": sweep_methods(config["sweep"])}
    with open_experiment(config, workdir) as experiment:
        workdir, model, made_by = experiment.workdir, experiment.model, experiment.made_by
        how, explore = _how(made_by["config"]), made_by["config"]["explore"]
        predictions = Predictions(workdir, _key(made_by), experiment.process)
        rows: list[dict[str, Any]] = []
        lines: list[Line] = []
        traces: list[dict[str, Any]] = []
        for task, methods in experiment.tasks:
            task_rows, task_lines = evaluate(model, task, methods, predictions=predictions, **how)
            rows += task_rows
            lines += task_lines
            if experiment.process.first or experiment.process.together:
                traces += trace_texts(model, task, methods, task_rows, task_lines, explore)
        if experiment.process.first:
            # No results of this run stand beside texts or a report of an earlier one, wherever it is stopped.
            (workdir / "results.json").unlink(missing_ok=True)
            (workdir / "report.html").unlink(missing_ok=True)
            write_json_lines(workdir / "traces.jsonl", traces)
            predictions.finish(lines, {"rows": rows, **made_by})
            report_evaluation(workdir, rows, made_by, traces)
        return rows


def sweep_methods(grid: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, dict[str, Any]]:
    """Makes the cells of a grid: every combination of the values, for each method.

    Where a cell has prune_layer and no min_exit_layer, both are the same, as in the paper (DVP).

    Args:
        grid: for each method, lists of values by the names of fields of `DecodeConfig`.

    Returns:
        For each cell, fields of `DecodeConfig`. The name of a cell lists its method and values.

    Raises:
        ValueError: an unknown method, or a field without a list of values.
    """
    cells = {}
    for method, fields in grid.items():
        if method not in METHODS:
            raise ValueError(f"sweep has {method!r}; allowed: {', '.join(METHODS)}")
        for name, values in fields.items():
            if isinstance(values, str) or not isinstance(values, Sequence) or not values:
                raise ValueError(f"sweep.{method}.{name} is {values!r}; allowed: a list of at least one value")
        for values in itertools.product(*fields.values()):
            cell = dict(zip(fields, values, strict=True))
            name = ",".join([method, *(f"{field}={value}" for field, value in cell.items())])
            if "prune_layer" in cell:
                cell = {"min_exit_layer": cell["prune_layer"], **cell}
            cells[name] = {"method": method, **cell}
    return cells


_MAX_TRACES = 2000
"""How many texts of each task the report of a sweep shows token by token at most, but one of each cell."""


def run_sweep(config: Mapping[str, Any], workdir: str | Path) -> list[dict[str, Any]]:
    """Evaluates a grid of settings.

    Writes a file for each cell under cells/, then sweep.json and report.html with its plots.

    An interrupted sweep continues with the cell that was running, as long as model, data, code, device and the
    cell's settings are the same. If cells were added to the grid, only these are decoded.

    Several processes decode a part of the cells each, or all cells together as in `run_evaluation`. Process 0
    writes the results.

    Args:
        config: a sweep config, as `experiments/configs/common.py` makes it.
        workdir: the folder for results. It is made if it is missing.

    Returns:
        The cells of sweep.json: rows as in results.json.

    Raises:
        ValueError: bad settings or data.
        OSError: a file is missing, or workdir is in use or cannot be written.
    """
    check_fields(config, SWEEP)
    methods = sweep_methods(config["sweep"])
    with open_experiment({**config, "methods": methods}, workdir) as experiment:
        rows: list[dict[str, Any]] = []
        traces: list[dict[str, Any]] = []
        shown = _MAX_TRACES // len(methods) or 1
        for cell in decode_cells(experiment):
            rows += cell["rows"]
            for task, _ in experiment.tasks:
                traces += [trace for trace in cell["traces"] if trace["task"] == task.name][:shown]
        made_by = {**experiment.made_by, "config": dict(config)}
        if experiment.process.first:
            (experiment.workdir / "report.html").unlink(missing_ok=True)
            write_json(experiment.workdir / "sweep.json", {"cells": rows, **made_by})
            report_sweep(experiment.workdir, rows, made_by, traces)
        return rows


def decode_cells(experiment: Experiment, *, predictions: bool = False) -> Iterator[dict[str, Any]]:
    """Decodes each method of an experiment by itself, into a file under cells/, and reads one after the other.

    Methods whose file exists are not decoded again. One cell is in memory at a time.

    Args:
        experiment: what to decode.
        predictions: whether the cells are read with their "predictions".

    Yields:
        For each method its cell: "rows" as in results.json, "traces" as in traces.jsonl, and "predictions" as in
        predictions.jsonl.

    Raises:
        ValueError: bad data, or more processes than cells.
        OSError: a file is missing or cannot be written, or the processes do not share a folder.
    """
    model, config, process = experiment.model, experiment.made_by["config"], experiment.process
    names = list(experiment.tasks[0][1])
    if len(names) < process.parts:
        raise ValueError(f"num_processes is {process.parts}; allowed: at most the cells, {len(names)}")
    files = _cell_files(experiment, names)
    missing = [name for name in names if not files[name].is_valid()]
    process.wait()
    if process.first:
        remove_partial_files(experiment.workdir / "cells")
    process.wait()
    for name in tqdm(process.part(missing), desc="sweep", unit="cell"):
        cell = _decode_cell(model, experiment.tasks, name, config)
        if process.writes:
            files[name].write(cell)
    process.wait()
    full: list[dict[str, Any]] = []  # the rows of the full model, whose cell is the first if there is one
    for name in names:
        cell = files[name].read(predictions)
        if name == names[0]:
            full = cell["rows"]
        for task, _ in experiment.tasks:
            compare_with_full([row for row in (*full, *cell["rows"]) if row["task"] == task.name])
        yield cell


_PREDICTIONS = b', "predictions": '
"""No text within JSON has these bytes, since quotes are escaped there."""


@dataclasses.dataclass(frozen=True)
class _CellFile:
    """A cell on disk. It is valid under the key that it was written with."""

    path: Path
    key: str

    def is_valid(self) -> bool:
        """Whether the file exists, is whole and was written under the key."""
        return read_sealed(self.path, self.key) is not None

    def read(self, predictions: bool) -> dict[str, Any]:
        """The cell, with or without its predictions, which are the last field and most of the file.

        Raises:
            OSError: the file is not valid.
        """
        text = read_sealed(self.path, self.key)
        if text is None:
            raise OSError(f"{self.path} is missing; allowed: a workdir that all processes share")
        return json.loads(text if predictions else text.partition(_PREDICTIONS)[0] + b"}")

    def write(self, cell: Mapping[str, Any]) -> None:
        write_whole(self.path, [seal(cell, self.key)])


def _cell_files(experiment: Experiment, names: Sequence[str]) -> dict[str, _CellFile]:
    folder = experiment.workdir / "cells"
    folder.mkdir(exist_ok=True)
    config = experiment.made_by["config"]
    # The rest of the grid does not change a cell.
    made_by = {**experiment.made_by, "config": {**config, "methods": None, "sweep": None}}
    return {
        name: _CellFile(folder / f"{file_name(name)}.json", _key({**made_by, "cell": config["methods"][name]}))
        for name in names
    }


def _how(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `evaluate` that a config has."""
    return {name: config[name] for name in ("batch_size", "limit", "confidence_time") if name in config}


def _decode_cell(
    model: Model,
    tasks: Sequence[tuple[Task, Mapping[str, DecodeConfig]]],
    name: str,
    config: Mapping[str, Any],
) -> dict[str, Any]:
    cell: dict[str, Any] = {"rows": [], "traces": [], "predictions": []}
    for task, methods in tasks:
        method = {name: methods[name]}
        rows, lines = evaluate(model, task, method, **_how(config))
        cell["rows"] += rows
        cell["predictions"] += lines
        cell["traces"] += trace_texts(model, task, method, rows, lines, config["explore"])
    return cell


def _key(made_by: Mapping[str, Any]) -> str:
    """Hashes everything that decides what is decoded. Texts found under another key must not be used."""
    config = {name: value for name, value in made_by["config"].items() if name != "explore"}
    made_with = {name: value for name, value in made_by.items() if name not in ("config", "time", "git_revision")}
    return digest([config, made_with, code_fingerprint()])
