"""Whole experiments: from a config to results, traces and a report in a folder that this run owns."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dvp_jax.data import make_task
from dvp_jax.data.task import Task
from dvp_jax.decode.api import decode_policy
from dvp_jax.decode.config import METHODS, DecodeConfig
from dvp_jax.evaluate.evaluation import compare_with_full, evaluate, make_methods
from dvp_jax.evaluate.reports import report_evaluation, report_sweep
from dvp_jax.evaluate.traces import trace_texts
from dvp_jax.runs import processes
from dvp_jax.runs.files import lock_workdir, write_json, write_json_lines
from dvp_jax.runs.predictions import Line, Predictions, read_json
from dvp_jax.runs.processes import ALONE, Process
from dvp_jax.runs.provenance import code_fingerprint, digest, provenance, versions
from dvp_jax.t5.load import Model, load_model
from dvp_jax.t5.sharding import make_mesh, several_processes


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What an evaluation config names, checked and loaded."""

    workdir: Path
    model: Model
    tasks: list[tuple[Task, dict[str, DecodeConfig]]]  # with the methods to decode each
    made_by: dict[str, Any]
    process: Process = ALONE


@contextlib.contextmanager
def open_experiment(
    config: Mapping[str, Any],
    workdir: str | Path,
    *,
    only: str | None = None,
    seed: int | None = None,
    model: Model | None = None,
) -> Iterator[Experiment]:
    """Owns the folder for results, checks an evaluation config, and only then loads the model.

    Args:
        config: as `experiments/configs/common.py` makes it.
        workdir: made where it is missing.
        only: leaves out settings of other methods than this one; None for all of them.
        seed: of random draws, to be noted.
        model: the one that the config names, where it is loaded already.

    Raises:
        ValueError: no model is named, an unknown task or field, an impossible value, no settings of the method
            asked for, a bad checkpoint, processes that differ in code, versions, config, model or data.
        OSError: workdir cannot be made or written, or is in use.
    """
    if not config["model"]:
        raise ValueError("config.model is not set; allowed: a checkpoint folder or a hub id (--config.model=...)")
    process = processes.current()
    with lock_workdir(workdir, process.index) as folder:
        process.agree({"versions": versions(), "config": config, "code": code_fingerprint()})
        tasks = [make_task(name, **fields) for name, fields in config["tasks"].items()]
        methods = [make_methods(config["methods"], task.max_new_tokens) for task in tasks]
        if only is not None:
            methods = [{name: cfg for name, cfg in ways.items() if cfg.method == only} for ways in methods]
            if not all(methods):
                names = ", ".join(config["methods"])
                raise ValueError(f"config.methods has {names}, none of method {only!r}; allowed: at least one")
        if model is None:
            mesh = make_mesh(config.get("mesh"))
            model = load_model(config["model"], config["dtype"], progress=True, mesh=mesh)
        made_by = provenance(config, model, tasks, seed)
        process.agree({name: made_by[name] for name in ("model_fingerprint", "data_fingerprint", "device")})
        process = dataclasses.replace(process, together=several_processes(model.mesh))
        yield Experiment(folder, model, list(zip(tasks, methods, strict=True)), made_by, process)


def run_evaluation(config: Mapping[str, Any], workdir: str | Path) -> list[dict[str, Any]]:
    """Decodes the config's tasks in all its ways: results.json, predictions.jsonl, traces.jsonl and report.html.

    An interrupted run goes on where it was; a finished one decodes nothing again, as long as config, model, data,
    code and device are the same. Of a sweep's config the ways are the cells of its grid: decoded in turn, a few
    batches at a time, their times can be compared. Several processes decode a part of each task's batches each, or
    all of them together where the config's mesh is larger than one's own devices; process 0 writes what comes of
    them.

    Args:
        config: as `experiments/configs/common.py` makes it.
        workdir: made where it is missing.

    Returns:
        The rows of results.json.

    Raises:
        ValueError: bad settings or data.
        OSError: files that are missing, or a workdir that is in use or cannot be written.
    """
    if "sweep" in config:
        config = {**config, "methods": sweep_methods(config["sweep"])}
    with open_experiment(config, workdir) as experiment:
        folder, model, made_by = experiment.workdir, experiment.model, experiment.made_by
        done = Predictions(folder, _key(made_by), experiment.process)
        rows: list[dict[str, Any]] = []
        lines: list[Line] = []
        traces: list[dict[str, Any]] = []
        for task, ways in experiment.tasks:
            of_task = evaluate(
                model, task, ways, batch_size=config["batch_size"], limit=config["limit"], done=done
            )
            rows += of_task[0]
            lines += of_task[1]
            if experiment.process.first or experiment.process.together:
                traces += trace_texts(model, task, ways, *of_task, config.get("explore", 0))
        if experiment.process.first:
            write_json_lines(folder / "traces.jsonl", traces)
            done.finish(lines, {"rows": rows, **made_by})
            report_evaluation(folder, rows, made_by, traces)
        return rows


def sweep_methods(grid: Mapping[str, Mapping[str, Sequence[Any]]]) -> dict[str, dict[str, Any]]:
    """Every combination of the values of each method's fields, under a name that tells them.

    `dvp` exits from prune_layer on unless the grid says otherwise, as in the paper.

    Args:
        grid: lists of values under the names of fields of `DecodeConfig`, under the name of each method.

    Raises:
        ValueError: a method that there is not, or a field without values.
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
            if method == "dvp" and "prune_layer" in cell:
                cell = {"min_exit_layer": cell["prune_layer"], **cell}
            cells[name] = {"method": method, **cell}
    return cells


def run_sweep(config: Mapping[str, Any], workdir: str | Path) -> list[dict[str, Any]]:
    """Evaluates a grid of settings: a file a cell under cells/, then sweep.json, plots and report.html.

    An interrupted sweep decodes again the cell that was running, and no other, as long as model, data, code,
    device and the cell's settings are the same; a grid that has grown decodes the new cells only. Several
    processes decode a part of the cells each, or all of them together as in `run_evaluation`; process 0 writes
    what comes of them.

    Args:
        config: as `experiments/configs/common.py` makes it.
        workdir: made where it is missing.

    Returns:
        The cells of sweep.json: rows as in results.json.

    Raises:
        ValueError: bad settings or data.
        OSError: files that are missing, or a workdir that is in use or cannot be written.
    """
    with open_experiment({**config, "methods": sweep_methods(config["sweep"])}, workdir) as experiment:
        cells = decode_cells(experiment)
        rows = [row for cell in cells for row in cell["rows"]]
        made_by = {**experiment.made_by, "config": dict(config)}
        if experiment.process.first:
            write_json(experiment.workdir / "sweep.json", {"cells": rows, **made_by})
            report_sweep(experiment.workdir, rows, made_by, [trace for cell in cells for trace in cell["traces"]])
        return rows


def decode_cells(experiment: Experiment) -> list[dict[str, Any]]:
    """Decodes each method of a experiment by itself, into a file under cells/; the files that are there already stay.

    Returns:
        Of each method "rows", as in results.json, "predictions", as in predictions.jsonl, and "traces".

    Raises:
        ValueError: settings that do not fit the model, found before anything is decoded; bad data; more processes
            than cells.
        OSError: files that are missing or cannot be written, or the processes share no folder.
    """
    model, config = experiment.model, experiment.made_by["config"]
    tasks, methods = zip(*experiment.tasks, strict=True)
    for cfg in methods[0].values():
        decode_policy(model, cfg)
    made_each = {**experiment.made_by, "config": {**config, "methods": None, "sweep": None}}
    if len(methods[0]) < experiment.process.parts:
        raise ValueError(
            f"num_processes is {experiment.process.parts}; allowed: at most the cells, {len(methods[0])}"
        )
    (experiment.workdir / "cells").mkdir(exist_ok=True)
    keys = {name: _key({**made_each, "cell": config["methods"][name]}) for name in methods[0]}
    paths = {name: experiment.workdir / "cells" / f"{name}.json" for name in methods[0]}

    def found(name: str) -> dict[str, Any] | None:
        cell = read_json(paths[name])
        return cell if cell is not None and cell["key"] == keys[name] else None

    missing = [name for name in methods[0] if found(name) is None]
    experiment.process.wait()
    for name in tqdm(experiment.process.part(missing), desc="sweep", unit="cell"):
        ways = [{name: of_task[name]} for of_task in methods]
        decoded = {**_decode_cell(model, tasks, ways, config), "key": keys[name]}
        if experiment.process.writes:
            write_json(paths[name], decoded)
    experiment.process.wait()
    cells = [cell for name in methods[0] if (cell := found(name)) is not None]
    if len(cells) < len(methods[0]):
        raise OSError(f"workdir {experiment.workdir} lacks cells; allowed: a folder that all processes share")
    for task in tasks:
        compare_with_full([row for cell in cells for row in cell["rows"] if row["task"] == task.name])
    return cells


def _decode_cell(
    model: Model, tasks: Sequence[Task], ways: Sequence[Mapping[str, DecodeConfig]], config: Mapping[str, Any]
) -> dict[str, Any]:
    cell: dict[str, Any] = {"rows": [], "predictions": [], "traces": []}
    for task, way in zip(tasks, ways, strict=True):
        rows, lines = evaluate(model, task, way, batch_size=config["batch_size"], limit=config["limit"])
        cell["rows"] += rows
        cell["predictions"] += lines
        cell["traces"] += trace_texts(model, task, way, rows, lines, config.get("explore", 0))
    return cell


def _key(made_by: Mapping[str, Any]) -> str:
    """A hash of all that decides what is decoded: under another one nothing that was found may be used."""
    config = {name: value for name, value in made_by["config"].items() if name != "explore"}
    ours = {name: value for name, value in made_by.items() if name not in ("config", "time", "git_revision")}
    return digest([config, ours, code_fingerprint()])
