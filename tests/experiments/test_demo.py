"""The demo that ships with the package, and its README command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.demo_text import sentences
from scripts.make_demo import write_texts

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "dvp_jax" / "demo"


def test_the_demo_is_small_enough_to_ship():
    assert sum(path.stat().st_size for path in DEMO.rglob("*") if path.is_file()) <= 12e6


def units(folder: Path, split: str) -> tuple[list[str], int, int]:
    """All sentences of a split, and its numbers of questions and of dialogues."""
    from dvp_jax.data import make_task

    squad = json.loads((folder / f"squad_{split}.json").read_text(encoding="utf-8"))
    paragraphs = [paragraph for article in squad["data"] for paragraph in article["paragraphs"]]
    dialogues = make_task("samsum", path=str(folder / f"samsum_{split}.csv")).load()
    texts = [paragraph["context"] for paragraph in paragraphs]
    for example in dialogues:
        texts += [example.prompt.removeprefix("summarize: "), *example.references]
    questions = sum(len(paragraph["qas"]) for paragraph in paragraphs)
    return [sentence for text in texts for sentence in sentences(text)], questions, len(dialogues)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    write_texts(folder, last="validation")
    return folder


def test_the_test_sets_are_those_that_the_script_draws(texts):
    for name in ("squad_test.json", "samsum_test.csv"):
        assert (DEMO / name).read_bytes() == (texts / name).read_bytes()


def test_the_validation_sets_share_no_sentence_with_the_test_sets(texts):
    tested, questions, dialogues = units(DEMO, "test")
    assert (questions, dialogues) == (200, 200)
    assert len(tested) > 1000
    validated, questions, dialogues = units(texts, "validation")
    assert questions > 300 and dialogues == 400
    assert not set(validated) & set(tested)


@pytest.mark.slow  # a minute: the test above, and test_forbidden_sentences_are_not_drawn, show the rule on fewer
def test_the_model_was_trained_on_no_sentence_of_the_test_sets(tmp_path):
    write_texts(tmp_path)
    tested, *_ = units(DEMO, "test")
    trained, questions, dialogues = units(tmp_path, "train")
    assert questions > 100_000 and dialogues == 80_000
    assert not set(tested) & set(trained)
    validated, *_ = units(tmp_path, "validation")
    assert not set(validated) & (set(tested) | set(trained))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("demo")
    command = ["-m", "experiments.evaluate", "--config=experiments/configs/demo.py", f"--workdir={workdir}"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}
    run = subprocess.run([sys.executable, *command], cwd=ROOT, env=offline, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("| dvp |") == 2 and "squad:" in run.stdout and "samsum:" in run.stdout
    return json.loads((workdir / "results.json").read_text(encoding="utf-8"))["rows"]


@pytest.fixture(scope="module")
def row_of(rows):
    of = {(row["task"], row["method"]): row for row in rows}
    assert set(of) == {(t, m) for t in ("squad", "samsum") for m in ("full", "static", "calm", "dvp")}
    return of


@pytest.mark.slow
@pytest.mark.parametrize(("task", "metric"), [("squad", "f1"), ("samsum", "rougeL")])
def test_dvp_keeps_the_full_models_quality(row_of, task, metric):
    full, dvp = row_of[task, "full"], row_of[task, "dvp"]
    assert full["num_examples"] == dvp["num_examples"] == 200
    assert dvp["metric"][metric] >= full["metric"][metric] - 1.0


@pytest.mark.slow
def test_the_model_summarises_and_leaves_early(row_of):
    assert row_of["samsum", "full"]["metric"]["rougeL"] >= 80
    assert row_of["samsum", "dvp"]["mean_exit_layer"] <= 0.6 * 8


@pytest.mark.slow
def test_the_model_answers_and_leaves_early(row_of):
    assert row_of["squad", "full"]["metric"]["f1"] >= 90
    assert row_of["squad", "dvp"]["mean_exit_layer"] <= 0.6 * 8
