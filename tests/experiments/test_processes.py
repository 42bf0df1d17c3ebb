"""Evaluations by several processes of this machine, against the same by one."""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
import signal
import time
from pathlib import Path

import pytest

import dvp_jax
from dvp_jax.data import make_task
from dvp_jax.evaluate.evaluation import evaluate, make_methods
from dvp_jax.evaluate.experiment import run_evaluation
from dvp_jax.runs.predictions import Predictions
from dvp_jax.runs.processes import Process
from tests.launching import SENTENCES, make_checkpoint, read_lines, run_launcher
from tests.processes import begin, end, errors

pytestmark = pytest.mark.usefixtures("quick_compiler")

CONFIG = """
from ml_collections import ConfigDict, config_dict

def get_config(folder):
    return ConfigDict({
        "model": f"{folder}/model",
        "dtype": "float32",
        "tasks": {"samsum": {"path": f"{folder}/test.csv", "max_new_tokens": 5}},
        "methods": {
            "full": {"method": "full"},
            "dvp": {"method": "dvp", "threshold": 0.2, "min_exit_layer": 1, "prune_layer": 1, "prune_size": 8},
        },
        "batch_size": 1,
        "limit": config_dict.placeholder(int),
        "explore": 3,
        "mesh": config_dict.placeholder(tuple),
    })
"""
run_evaluate = functools.partial(run_launcher, "evaluate")


def evaluate_with_another_version() -> None:
    version = importlib.metadata.version
    importlib.metadata.version = lambda name: "9.8.7" if name == "dvp-jax" else version(name)
    run_evaluate()


def write_texts(folder: Path, count: int) -> None:
    rows = (f"{index},{SENTENCES[index % 6]} bagu,dada dade\n" for index in range(count))
    (folder / "test.csv").write_text("id,dialogue,summary\n" + "".join(rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, texts and the config that decodes them."""
    folder = tmp_path_factory.mktemp("processes")
    make_checkpoint(folder / "model", seed=0, num_layers=1, num_decoder_layers=2)
    (folder / "own.py").write_text(CONFIG)
    write_texts(folder, 9)
    return folder


def flags(folder: Path, workdir: Path, *others: object) -> list[object]:
    return [f"--config={folder}/own.py:{folder}", f"--workdir={workdir}", *others]


def config_of(folder: Path) -> dict:
    names: dict = {}
    exec(CONFIG, names)
    return names["get_config"](str(folder)).to_dict()


def untimed(value: object) -> object:
    """Without what no two runs have in common."""
    times = {
        "decode_s",
        "encode_s",
        "ms_per_token",
        "encoder_ms_per_example",
        "speed_up",
        "time",
        "checksum",
        "predictions_checksum",
    }
    if isinstance(value, dict):
        return {name: untimed(x) for name, x in value.items() if name not in times}
    return [untimed(x) for x in value] if isinstance(value, list) else value


def assert_same_run(found: Path, expected: Path) -> None:
    for name in ("predictions.jsonl", "traces.jsonl"):
        assert untimed(read_lines(found / name)) == untimed(read_lines(expected / name))
    of_found, of_expected = (json.loads((run / "results.json").read_text()) for run in (found, expected))
    assert untimed(of_found) == untimed(of_expected)
    names = [{path.name for path in run.iterdir() if ".lock" not in path.name} for run in (found, expected)]
    assert names[0] == names[1]


@pytest.fixture(scope="module")
def alone(folder) -> Path:
    run_evaluation(config_of(folder), folder / "alone")
    return folder / "alone"


def test_two_processes_write_what_one_writes(folder, alone, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    first, second = end(begin([["-m", "experiments.evaluate", *flags(folder, tmp_path / "run")]] * 2))
    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert_same_run(tmp_path / "run", alone)
    assert len(read_lines(tmp_path / "run" / "predictions.jsonl")) == 2 * 9
    *rows, blank, report = first.stdout.splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["full", "dvp"]
    assert (blank, report) == ("", f"report: {tmp_path / 'run' / 'report.html'}")
    assert second.stdout == ""
    assert not (tmp_path / "compiled").exists(), "several processes do without JAX's compile cache on CPU"


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["1,2", "1,4", "2,2"], ids=["of-each", "model-over-both", "rows-over-both"])
def test_processes_decode_on_meshes_of_their_own_devices_or_of_all(folder, alone, tmp_path, monkeypatch, mesh):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    runs = end(begin([[run_evaluate, *flags(folder, tmp_path / "run", f"--config.mesh={mesh}")]] * 2))
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    for name, fields in (
        ("predictions", ("name", "id", "tokens", "exit_layers")),
        ("traces", ("name", "id", "pieces", "candidates", "ranks")),
    ):
        found, expected = (
            [[line[field] for field in fields] for line in read_lines(run / f"{name}.jsonl")]
            for run in (tmp_path / "run", alone)
        )
        assert found == expected, name
    runs_in = tmp_path / "run", alone
    names = [{path.name for path in run.iterdir() if ".lock" not in path.name} for run in runs_in]
    assert names[0] == names[1]


def test_a_process_with_another_version_and_config_is_refused_with_both_values(folder, tmp_path):
    one = [run_evaluate, *flags(folder, tmp_path / "run")]
    other = [evaluate_with_another_version, *flags(folder, tmp_path / "run", "--config.batch_size=3")]
    began = time.monotonic()
    runs = end(begin([one, other]))
    assert time.monotonic() - began < 60
    version = dvp_jax.runs.provenance.versions()["dvp-jax"]
    for run in runs:
        assert run.returncode == 1
        (error,) = errors(run)
        assert run.stderr.splitlines()[-1] == error, "nothing is said after it"
        assert "process 1 differs from process 0: " in error
        assert "config.batch_size is 3, not 1" in error
        assert f"versions.dvp-jax is '9.8.7', not '{version}'" in error
        assert "loading" not in run.stderr
    assert not list((tmp_path / "run").glob("*.json*"))


def test_more_processes_than_batches_are_refused_with_both_numbers(folder):
    model = dvp_jax.load_model(folder / "model")
    task = make_task("samsum", path=str(folder / "test.csv"))
    message = (
        "num_processes is 6; allowed: at most 5, the parts that samsum is decoded in (5 examples, batch_size 1)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        methods = make_methods({"full": {"method": "full"}}, 5)
        evaluate(model, task, methods, limit=5, predictions=Predictions(process=Process(3, 6)))


@pytest.mark.slow
@pytest.mark.parametrize(("dies", "goes_on"), [(0, 1), (1, 3)])
def test_the_others_stop_when_one_is_killed_and_any_number_goes_on(folder, tmp_path, dies, goes_on):
    write_texts(tmp_path, 600)
    texts = f"--config.tasks.samsum.path={tmp_path}/test.csv"
    one = ["-m", "experiments.evaluate", *flags(folder, tmp_path / "run", texts)]
    one.append("--config.tasks.samsum.max_new_tokens=200")
    processes = begin([one] * 2)
    journal = tmp_path / "run" / f"predictions.partial{'-1' if dies else ''}.jsonl"
    while not journal.is_file() or len(journal.read_bytes().splitlines()) < 20:
        assert processes[dies].poll() is None, processes[dies].communicate()
        time.sleep(0.01)
    processes[dies].send_signal(signal.SIGKILL)
    began = time.monotonic()
    runs = end(processes)
    assert time.monotonic() - began < 60
    assert runs[dies].returncode == -signal.SIGKILL
    assert runs[1 - dies].returncode != 0

    written = {
        json.dumps({field: value for field, value in line.items() if field not in ("key", "checksum")})
        for path in (tmp_path / "run").glob("predictions.partial*.jsonl")
        for line in map(json.loads, path.read_text().split("\n")[1:-3])  # the last ones may be of half a batch
    }
    assert len(written) > 10
    for run in end(begin([one] * goes_on)):
        assert run.returncode == 0, run.stderr
    lines = {json.dumps(line) for line in read_lines(tmp_path / "run" / "predictions.jsonl")}
    assert written <= lines and len(lines) == 2 * 600
