"""`python -m experiments.sweep` on a tiny random model; and launchers that are killed and started again."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.launching import QUICK_COMPILER, ROOT, check_error, launch, read_lines, start, write_configs
from tests.processes import begin, end

GRID = {
    "full": {},
    "calm": {"min_exit_layer": (2,), "threshold": (0.3, 0.6)},
    "dvp": {"prune_layer": (1, 2), "prune_size": (8,), "threshold": (0.3, 0.6)},
}
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
TIMES = re.compile(r"ms_per|speed_up|_s$|^time$|^git_revision$|checksum$")


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
        run = start("-m", f"experiments.{name}", f"--config={configs / name}.py", f"--workdir={workdir}")
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
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | QUICK_COMPILER, **QUIET)
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
    assert len(first.stdout.splitlines()) == 2 + 7 + 2 and second.stdout == ""
    assert first.stdout.endswith(f"\n\nreport: {tmp_path / 'run' / 'report.html'}\n")


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
    assert len(first.stdout.splitlines()) == 2 + 7 + 2 and second.stdout == ""
    assert first.stdout.endswith(f"\n\nreport: {tmp_path / 'run' / 'report.html'}\n")


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
        "--config.methods.dvp_8.prune_size=8",
        "--config.methods.dvp_8.threshold=0.3",
        "--config.explore=0",
    )
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    (row,) = [row for row in rows if row["name"] == "dvp_8"]
    (cell,) = [c for c in cells if c["name"] == "dvp,prune_layer=2,prune_size=8,threshold=0.3"]
    assert untimed({**row, "name": None}) == untimed({**cell, "name": None})
    full = cells[0]
    assert full["method"] == "full" and full["speed_up"] == 1.0
    assert cell["speed_up"] == pytest.approx(full["ms_per_token"] / cell["ms_per_token"])


@pytest.mark.slow
def test_evaluate_decodes_the_cells_of_a_sweeps_config_side_by_side(configs, whole, tmp_path):
    run = launch("evaluate", f"--config={configs / 'sweep.py'}", f"--workdir={tmp_path}", "--config.explore=0")
    assert run.returncode == 0, run.stderr
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert untimed(rows) == untimed(json.loads((whole["sweep"][0] / "sweep.json").read_text())["cells"])


def test_a_second_process_on_one_workdir_is_refused(configs, tmp_path):
    command = [sys.executable, "-m", "experiments.evaluate", f"--config={configs / 'evaluate.py'}"]
    first = subprocess.Popen([*command, f"--workdir={tmp_path}"], cwd=ROOT, **QUIET)
    try:
        while not (tmp_path / ".lock").is_file() or not (tmp_path / ".lock").read_text():
            assert first.poll() is None
            time.sleep(0.02)
        second = launch("sweep", f"--config={configs / 'sweep.py'}", f"--workdir={tmp_path}")
        check_error(second, "workdir", tmp_path, f"in use by process {first.pid}")
    finally:
        first.kill()
        first.wait()


def test_an_impossible_cell_is_refused_before_anything_is_decoded(configs, tmp_path):
    run = launch(
        "sweep",
        f"--config={configs / 'sweep.py'}",
        f"--workdir={tmp_path}",
        "--config.sweep.dvp.prune_layer=(1, 9)",
    )
    check_error(run, "prune_layer is 9", "from 1 to 3 for this model")
    assert not list(tmp_path.glob("cells/*"))
