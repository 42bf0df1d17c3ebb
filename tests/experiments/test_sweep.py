"""Sweeps, and launchers that are killed and started again."""

from __future__ import annotations

import dataclasses
import functools
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dvp_jax
from dvp_jax.evaluate.experiment import sweep_methods
from dvp_jax.evaluate.reports import advice, report_sweep
from tests.experiments.test_launchers import ROOT, SENTENCES, check_error, launch, make_checkpoint, read_lines
from tests.processes import begin, end
from tests.report.test_plots import texts_of

CONFIG = """
from ml_collections import ConfigDict
from experiments.configs.common import evaluation, sweep

def get_config():
    config = evaluation(
        model={model!r},
        tasks={{"samsum": {{"path": {data!r}, "max_new_tokens": 12}}}},
        threshold=0.5,
        prune_sizes=(16, 64),
    )
    {ending}
"""
GRID = {
    "full": {},
    "calm": {"min_exit_layer": (2,), "threshold": (0.3, 0.6)},
    "dvp": {"prune_layer": (1, 2), "prune_size": (8,), "threshold": (0.3, 0.6)},
}
TIMES = re.compile(r"ms_per|speed_up|_s$|^time$|^git_revision$")


def write_configs(folder: Path, count: int, **endings: str) -> Path:
    """A tiny random model, so many examples, and for each name a config of both that ends as given."""
    checkpoint = make_checkpoint(folder / "model", seed=1)
    short = sorted(SENTENCES, key=len)[:5]  # of one source bucket
    rows = [f"{i},{short[i % 5]} {short[i % 4]},dada dade" for i in range(count)]
    (folder / "test.csv").write_text("\n".join(["id,dialogue,summary", *rows]) + "\n")
    fields = {"model": str(checkpoint.folder), "data": str(folder / "test.csv")}
    for name, ending in endings.items():
        (folder / f"{name}.py").write_text(CONFIG.format(ending=ending, **fields))
    return folder


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Configs of an evaluation and of a sweep of a tiny random model."""
    folder = tmp_path_factory.mktemp("sweep")
    return write_configs(folder, 24, evaluate="return config", sweep=f"return sweep(config, {GRID})")


def untimed(value):
    """The value without times, which differ from run to run."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if not TIMES.search(key)}
    return [untimed(item) for item in value] if isinstance(value, list) else value


def outcome(workdir: Path) -> dict:
    """All that a run found."""
    found = {path.name: untimed(json.loads(path.read_text())) for path in workdir.glob("*.json")}
    found |= {path.name: untimed(read_lines(path)) for path in workdir.glob("*.jsonl")}
    found |= {path.name: untimed(json.loads(path.read_text())) for path in workdir.glob("cells/*.json")}
    found["report"] = (workdir / "report.html").is_file()
    return found


@pytest.fixture(scope="module")
def whole(configs, tmp_path_factory):
    """Workdirs of uninterrupted runs, and seconds that each took."""
    runs = {}
    for name in ("evaluate", "sweep"):
        workdir, begin = tmp_path_factory.mktemp(name) / "run", time.perf_counter()
        run = launch(name, f"--config={configs / name}.py", f"--workdir={workdir}")
        assert run.returncode == 0, run.stderr
        runs[name] = workdir, time.perf_counter() - begin
    return runs


def progress(name: str, workdir: Path) -> int:
    """How much of an interrupted run is there."""
    if name == "sweep":
        return len(list(workdir.glob("cells/*.json")))
    partial = workdir / "predictions.partial.jsonl"
    return partial.read_bytes().count(b"\n") if partial.is_file() else 0


def has_gone_on(name: str, workdir: Path, done: int) -> bool:
    return progress(name, workdir) > done


def start_and_kill(name: str, config: Path, workdir: Path, ready, seconds: float) -> bool:
    """Starts a launcher and kills it `seconds` after `ready()`; whether it was still running."""
    command = [sys.executable, "-m", f"experiments.{name}", f"--config={config}", f"--workdir={workdir}"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not ready():
        time.sleep(0.02)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluate", "sweep"])
def test_a_killed_run_goes_on_where_it_was(name, configs, whole, tmp_path):
    workdir, config = tmp_path / "run", configs / f"{name}.py"
    assert start_and_kill(name, config, workdir, lambda: progress(name, workdir) >= 3, 0.0)
    done = progress(name, workdir)
    assert not (workdir / f"{'results' if name == 'evaluate' else name}.json").exists()
    files = {path: path.stat().st_mtime_ns for path in workdir.glob("cells/*.json")}
    assert start_and_kill(name, config, workdir, lambda: progress(name, workdir) > done, 0.0)
    run = launch(name, f"--config={config}", f"--workdir={workdir}")
    assert run.returncode == 0, run.stderr
    assert outcome(workdir) == outcome(whole[name][0])
    assert all(path.stat().st_mtime_ns == before for path, before in files.items()), "a cell was decoded again"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["evaluate", "sweep"])
def test_a_run_killed_twenty_times_at_random_moments_finds_the_same(name, configs, whole, tmp_path):
    expected, seconds = whole[name]
    moments, workdir, kills, partial = random.Random(0), tmp_path / "run", 0, 0
    while kills < 20:
        # In turn soon after it went on, however slow the machine is just now, and at any moment from its start on.
        done = progress(name, workdir) if kills % 2 else -1
        moment = moments.uniform(0.0, 1.0 if kills % 2 else seconds)
        going_on = functools.partial(has_gone_on, name, workdir, done)
        if start_and_kill(name, configs / f"{name}.py", workdir, going_on, moment):
            kills += 1
            partial += progress(name, workdir) > 0
        else:  # done between two kills: once more from the start
            assert outcome(workdir) == outcome(expected)
            shutil.rmtree(workdir)
    run = launch(name, f"--config={configs / name}.py", f"--workdir={workdir}")
    assert run.returncode == 0, run.stderr
    assert outcome(workdir) == outcome(expected)
    assert partial >= 5, "else the kills were too early to matter"


@pytest.mark.slow
def test_two_processes_that_decode_a_part_of_the_cells_each_find_what_one_finds(configs, whole, tmp_path):
    command = ["-m", "experiments.sweep", f"--config={configs / 'sweep.py'}", f"--workdir={tmp_path / 'run'}"]
    first, second = end(begin([command] * 2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert outcome(tmp_path / "run") == outcome(whole["sweep"][0])
    assert len(first.stdout.splitlines()) == 2 + 7 and second.stdout == ""


@pytest.mark.slow
def test_two_processes_that_decode_all_cells_together_find_what_one_finds(configs, whole, tmp_path):
    command = ["-m", "experiments.sweep", f"--config={configs / 'sweep.py'}", f"--workdir={tmp_path / 'run'}"]
    first, second = end(begin([[*command, "--config.mesh=1,2"]] * 2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    found, expected = (
        {path.name: json.loads(path.read_text())["predictions"] for path in run.glob("cells/*.json")}
        for run in (tmp_path / "run", whole["sweep"][0])
    )
    assert len(found) == 7 and found.keys() == expected.keys()
    for name, lines in expected.items():
        for mine, line in zip(found[name], lines, strict=True):
            assert (mine["id"], mine["tokens"], mine["exit_layers"]) == (
                line["id"],
                line["tokens"],
                line["exit_layers"],
            )
    assert len(first.stdout.splitlines()) == 2 + 7 and second.stdout == ""


def test_a_finished_evaluation_decodes_nothing_again_unless_something_changed(configs, whole, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(whole["evaluate"][0], workdir)
    before = read_lines(workdir / "predictions.jsonl")

    def again(*flags):
        run = launch("evaluate", f"--config={configs / 'evaluate.py'}", f"--workdir={workdir}", *flags)
        assert run.returncode == 0, run.stderr
        return read_lines(workdir / "predictions.jsonl")

    assert again() == before, "times too: nothing was decoded"
    changed = again("--config.methods.calm.threshold=0.4")
    assert untimed([line for line in changed if line["name"] == "full"]) == untimed(
        [line for line in before if line["name"] == "full"]
    )
    assert [line["decode_s"] for line in changed] != [line["decode_s"] for line in before]


def test_every_cell_of_the_grid_is_in_sweep_json_as_evaluate_would_have_it(configs, whole, tmp_path):
    cells = json.loads((whole["sweep"][0] / "sweep.json").read_text())["cells"]
    assert len(cells) == 1 + 2 + 4
    assert {(c["prune_layer"], c["min_exit_layer"], c["prune_size"], c["threshold"]) for c in cells[3:]} == {
        (p, p, 8, threshold) for p in (1, 2) for threshold in (0.3, 0.6)
    }
    run = launch(
        "evaluate",
        f"--config={configs / 'evaluate.py'}",
        f"--workdir={tmp_path}",
        "--config.methods.dvp_64.prune_size=8",
        "--config.methods.dvp_64.threshold=0.3",
        "--config.explore=0",
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    (row,) = [row for row in rows if row["name"] == "dvp_64"]
    (cell,) = [c for c in cells if c["name"] == "dvp,prune_layer=2,prune_size=8,threshold=0.3"]
    assert untimed({**row, "name": None}) == untimed({**cell, "name": None})
    full = cells[0]
    assert full["method"] == "full" and full["speed_up"] == 1.0
    assert cell["speed_up"] == pytest.approx(full["ms_per_token"] / cell["ms_per_token"])


def test_evaluate_decodes_the_cells_of_a_sweeps_config_side_by_side(configs, whole, tmp_path):
    run = launch("evaluate", f"--config={configs / 'sweep.py'}", f"--workdir={tmp_path}", "--config.explore=0")
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert untimed(rows) == untimed(json.loads((whole["sweep"][0] / "sweep.json").read_text())["cells"])


def test_a_second_process_on_one_workdir_is_refused(configs, tmp_path):
    command = [sys.executable, "-m", "experiments.evaluate", f"--config={configs / 'evaluate.py'}"]
    first = subprocess.Popen(
        [*command, f"--workdir={tmp_path}"], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not (tmp_path / ".lock").is_file() or not (tmp_path / ".lock").read_text():
            assert first.poll() is None
            time.sleep(0.02)
        second = launch("sweep", f"--config={configs / 'sweep.py'}", f"--workdir={tmp_path}")
        check_error(second, "workdir", tmp_path, f"in use by process {first.pid}")
    finally:
        first.kill()
        first.wait()


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


def test_an_impossible_cell_is_refused_before_anything_is_decoded(configs, tmp_path):
    run = launch(
        "sweep",
        f"--config={configs / 'sweep.py'}",
        f"--workdir={tmp_path}",
        "--config.sweep.dvp.prune_layer=(1, 9)",
    )
    check_error(run, "prune_layer is 9", "from 1 to 3 for this model")
    assert not list(tmp_path.glob("cells/*"))


def cell(method, metric, flops, **settings):
    fields = [field.name for field in dataclasses.fields(dvp_jax.DecodeConfig)]
    row = {**dict.fromkeys(fields), **settings, "method": method, "metric": {"f1": metric}, "num_layers": 8}
    costs = {"layer_flops_per_token": flops, "unembedding_flops_per_token": 0.0, "ms_per_token": 1.0}
    return {
        **row,
        **costs,
        "mean_exit_layer": 2.0,
        "task": "squad",
        "confidence_flops_per_token": 0.0,
        "speed_up": None,
    }


def test_the_advice_is_the_least_work_within_a_point_of_the_full_model():
    cells = [cell("full", 90.0, 8.0), cell("dvp", 89.2, 3.0, prune_size=64), cell("dvp", 88.9, 2.0, prune_size=32)]
    assert "2 of 3 cells are within 1 of the full model's f1, 90.00" in advice(cells)
    assert "dvp, K 64: f1 89.20" in advice(cells)
    assert "1 of 2 cells are within 1 of the best cell's f1, 90.50" in advice(
        [cell("calm", 90.5, 9.0), cell("dvp", 88.0, 1.0, prune_size=32)]
    )


def test_a_sweep_of_several_measures_compares_them_over_their_thresholds(tmp_path):
    calm = {"min_exit_layer": 2}
    cells = [cell("full", 90.0, 8.0)] + [
        cell("calm", 80.0, 5.0, confidence=measure, threshold=threshold, **calm)
        for measure in ("softmax_diff", "state")
        for threshold in (0.3, 0.6)
    ]
    report_sweep(tmp_path, cells, {}, [])
    shown = texts_of(tmp_path / "squad_f1_per_measure.svg")
    assert {"full", "calm, softmax_diff, min exit 2", "calm, state, min exit 2"} <= shown
    assert not any("threshold" in text for text in shown)
    assert "f1 of each measure" in (tmp_path / "report.html").read_text()


def test_a_sweep_of_one_measure_has_nothing_to_compare(tmp_path):
    report_sweep(tmp_path, [cell("full", 90.0, 8.0), cell("calm", 80.0, 5.0, confidence="state")], {}, [])
    assert not (tmp_path / "squad_f1_per_measure.svg").exists()
