"""Launchers that are killed before each of their renames and at random moments, and then started again.

What is there in the end is what an uninterrupted run gives, or the start is refused; never a mixture of two runs.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import random
import re
import runpy
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

import dvp_jax
from tests.launching import ROOT, call, make_checkpoint, read_lines, run_launcher, write_configs

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("quick_compiler")]

GRID = {"full": {}, "calm": {"min_exit_layer": (1,), "threshold": (0.3, 0.6)}}
SELECT = ["--delta=0.9", "--epsilon=0.9", "--measure=exact_match", "--without_guarantee"]
TRAIN = {"steps": 2, "batch_size": 2, "checkpoint_every": 1, "optimizer": "adamw", "keep": 1}
TRAINING = """
from experiments.configs.common import finetuning

def get_config():
    tasks = {{"samsum": {{"path": {data!r}, "max_source_length": 32, "max_new_tokens": 8}}}}
    return finetuning(model={model!r}, tasks=tasks, validation_tasks=tasks, train={train})
"""


@dataclasses.dataclass(frozen=True)
class Launcher:
    """A launcher, its config, and the flags of two runs that differ."""

    name: str
    config: str | None
    flags: list[str]
    other_flags: list[str]


EVALUATE = Launcher("evaluate", "evaluate", [], ["--config.methods.calm.threshold=0.4"])
SWEEP = Launcher("sweep", "sweep", [], ["--config.limit=3"])
SELECTION = Launcher("select", "sweep", SELECT, [*SELECT, "--config.limit=3"])
FINETUNE = Launcher("finetune", "train", ["--resume"], ["--resume", "--config.train.learning_rate=0.1"])
META = Launcher("finetune_meta", "train", ["--steps=2"], ["--steps=2", "--learning_rate=0.05"])
CONVERT = Launcher("convert", None, ["--format=orbax"], ["--format=huggingface", "--dtype=bfloat16"])


def run_to_be_killed(name: str, workdir: str, rename: int, seconds: float) -> None:
    """Runs a launcher that is killed before a rename below its workdir, or after some seconds; 0 for neither."""
    numbers = itertools.count(1)
    count = 0

    def counted(real):
        def renamed(source, target, **others):
            nonlocal count
            if str(target).startswith(workdir):
                count = next(numbers)
                if count == rename:
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(source, target, **others)

        return renamed

    os.rename, os.replace = counted(os.rename), counted(os.replace)
    if seconds:
        threading.Timer(seconds, os.kill, [os.getpid(), signal.SIGKILL]).start()
    try:
        if name == "convert":
            runpy.run_path(str(ROOT / "scripts" / "convert_checkpoint.py"), run_name="__main__")
        else:
            run_launcher(name)
    finally:
        print(f"renames: {count}", file=sys.stderr)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = write_configs(
        tmp_path_factory.mktemp("kills"), 6, evaluate="return config", sweep=f"return sweep(config, {GRID})"
    )
    make_checkpoint(folder / "small", num_layers=1, num_decoder_layers=2)
    fields = {"model": str(folder / "small"), "data": str(folder / "test.csv"), "train": TRAIN}
    (folder / "train.py").write_text(TRAINING.format(**fields))
    return folder


def run(launcher: Launcher, folder: Path, workdir: Path, other: bool, *, rename: int = 0, seconds: float = 0.0):
    if launcher.config is None:
        flags = [f"--source={folder / ('small' if other else 'model')}", f"--output={workdir}"]
    else:
        flags = [f"--config={folder / launcher.config}.py", f"--workdir={workdir}"]
    function = functools.partial(run_to_be_killed, launcher.name, str(workdir), rename, seconds)
    return call(function, *flags, *(launcher.other_flags if other else launcher.flags))


UNLIKE = re.compile(r"ms_per|speed_up|_s$|^time$|^git_revision$|checksum$")
"""Fields that no two runs have in common."""


def comparable(value: object) -> object:
    if isinstance(value, dict):
        return {name: comparable(item) for name, item in value.items() if not UNLIKE.search(name)}
    return [comparable(item) for item in value] if isinstance(value, list) else value


def outcome(workdir: Path) -> dict[str, object]:
    """All that a run found. Loading a model compares its checksums."""
    assert not list(workdir.rglob("*partial*")) and not list(workdir.parent.glob(".*")), "something is left"
    models = [path.parent for path in workdir.rglob("config.json") if "d_model" in path.read_text()]
    found: dict[str, object] = {
        str(path.relative_to(workdir)): dvp_jax.load_model(path).fingerprint for path in models
    }
    for path in workdir.glob("*.json*"):
        if path.parent not in models:
            read = read_lines if path.suffix == ".jsonl" else lambda path: json.loads(path.read_text())
            found[path.name] = comparable(read(path))
    return found | {"report": (workdir / "report.html").is_file()}


@pytest.mark.parametrize("launcher", [EVALUATE, SWEEP, SELECTION, FINETUNE, META, CONVERT], ids=lambda x: x.name)
def test_a_run_killed_at_any_write_is_never_mixed_with_another(launcher, folder, tmp_path):
    whole = {}
    for other in (True, False):
        begin = time.perf_counter()
        done = run(launcher, folder, tmp_path / f"whole-{other}" / "run", other)
        assert done.returncode == 0, done.stderr
        took = time.perf_counter() - begin
        whole[other] = outcome(tmp_path / f"whole-{other}" / "run")
    assert whole[False] != whole[True]
    renames = int(re.findall(r"renames: (\d+)", done.stderr)[-1])
    assert renames >= 1
    moments = random.Random(0)
    kills = [{"rename": number} for number in range(1, renames + 1)]
    kills += [{"seconds": moments.uniform(0.1, took)} for _ in range(20)]
    num_killed = 0
    for number, kill in enumerate(kills):
        workdir = tmp_path / str(number) / "run"
        killed = run(launcher, folder, workdir, False, **kill)
        assert killed.returncode == -signal.SIGKILL or "seconds" in kill, killed.stderr
        num_killed += killed.returncode == -signal.SIGKILL
        ended = False
        for other in (True, False):
            again = run(launcher, folder, workdir, other)
            if again.returncode == 0:
                assert outcome(workdir) == whole[other], (kill, other)
                ended = True
            else:
                errors = [line for line in again.stderr.splitlines() if line.startswith("error: ")]
                assert again.returncode == 1 and len(errors) == 1, (kill, other, again.stderr)
                assert "Traceback" not in again.stderr
        assert ended or outcome(workdir) == whole[False], (kill, "neither run came to its end")
    assert num_killed >= renames + 10, "most runs ended before their moment"
