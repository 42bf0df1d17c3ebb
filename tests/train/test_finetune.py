"""Whole training runs by the launcher, and models that start from nothing."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import shutil
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file

import dvp_jax
from dvp_jax.runs.files import lock_workdir
from dvp_jax.t5.hugging_face import parameter_shapes
from dvp_jax.train import scratch
from dvp_jax.train.finetune import finetune
from dvp_jax.train.scratch import new_model, train_tokenizer
from scripts.demo_text import squad_json
from tests.launching import start as start_python
from tests.processes import begin, end, process_flags
from tests.train.helpers import files_under, finish, flat, launch_finetune, start, word_tokenizer

pytestmark = pytest.mark.usefixtures("quick_compiler")

SHAPE = {"vocab_size": 44, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 1}
SHAPE["num_decoder_layers"] = 2
NAMES = ["ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal"]
CITIES = ["oslo", "rome", "bern", "lima", "kiev", "cork", "york", "graz"]

CONFIG = """
from experiments.configs.common import finetuning

def get_config(data):
    def tasks(split):
        lengths = {"max_source_length": 32, "max_new_tokens": 8}
        return {
            "squad": {"path": f"{data}/squad_%s.json" % split, **lengths},
            "samsum": {"path": f"{data}/samsum_%s.csv" % split, **lengths},
        }

    return finetuning(
        shape=SHAPE,
        tasks=tasks("train"),
        validation_tasks=tasks("validation"),
        train={
            "steps": 6,
            "batch_size": 4,
            "optimizer": "adamw",
            "learning_rate": 0.01,
            "dropout_rate": 0.1,
            "checkpoint_every": 2,
        },
    )
"""


def write_squad(path: Path, count: int) -> None:
    paragraphs = []
    for index in range(count):
        name, city = NAMES[index % 8], CITIES[(index + index // 8) % 8]
        answer = {"text": city, "answer_start": 0}
        qas = [{"id": str(index), "question": f"where is {name} ?", "answers": [answer]}]
        paragraphs.append({"context": f"{name} is in {city} .", "qas": qas})
    path.write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}))


def write_samsum(path: Path, count: int, *, long: bool = False) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "dialogue", "summary"])
        for index in range(count):
            name, city = NAMES[index % 8], CITIES[(index + index // 8) % 8]
            writer.writerow([index, f"{name} : i am in {city}", f"{name} is in {city}"])
        if long:
            writer.writerow([count, "ann : " + "oslo rome bern " * 20, "ann"])


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder with the texts, and the config that trains on them."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 8), ("validation", 4)):
        write_squad(folder / f"squad_{split}.json", count)
        write_samsum(folder / f"samsum_{split}.csv", count, long=split == "train")
    (folder / "tiny.py").write_text(CONFIG.replace("SHAPE", repr(SHAPE)))
    return folder


@dataclasses.dataclass
class Run:
    """A finished run of the launcher."""

    status: int
    stdout: str
    stderr: str
    workdir: Path

    @property
    def model(self) -> Path:
        return self.workdir / "model"


def arguments(data: Path, workdir: Path, *others: str) -> list[str]:
    return [f"--config={data}/tiny.py:{data}", f"--workdir={workdir}", *others]


def launch(data: Path, workdir: Path, *others: str) -> Run:
    """The launcher in a process that need not import everything anew."""
    log = data / "log"
    log.unlink(missing_ok=True)
    process = start(launch_finetune, log, arguments(data, workdir, *others))
    return Run(finish(process, log), "", log.read_text(), workdir)


@pytest.fixture(scope="module")
def trained(data) -> Run:
    """The run from scratch, as a user starts it."""
    workdir = data / "runs" / "scratch"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # compiles in half the time
        run = start_python("-m", "experiments.finetune", *arguments(data, workdir))
    assert run.returncode == 0, run.stderr
    return Run(run.returncode, run.stdout, run.stderr, workdir)


def metrics_of(run: Run, split: str) -> list[dict]:
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def test_a_run_writes_model_log_plot_and_config(trained):
    assert trained.stdout == f"the best model is in {trained.model}\n"
    files = {path.name for path in trained.workdir.iterdir()}
    assert files == {"model", "checkpoints", "metrics.jsonl", "accuracy_per_depth.svg", "config.json", ".lock"}
    assert {"config.json", "model.safetensors", "tokenizer_config.json"} <= {
        p.name for p in trained.model.iterdir()
    }
    config = json.loads((trained.workdir / "config.json").read_text())
    assert config["shape"] == SHAPE and config["train"]["steps"] == 6
    assert [line["step"] for line in metrics_of(trained, "train")] == [2, 4, 6]
    validations = metrics_of(trained, "validation")
    assert [line["step"] for line in validations] == [2, 4, 6]
    assert all(len(line[name]) == 2 for line in validations for name in ("loss", "accuracy"))


def test_a_run_learns_and_says_what_it_truncated(trained):
    losses = [line["loss"][-1] for line in metrics_of(trained, "validation")]
    assert losses[-1] < losses[0]
    assert "1 of 9 prompts of samsum are longer than 32 tokens and were truncated" in trained.stderr


def test_the_exported_model_is_the_same_in_transformers(trained):
    peer = transformers.T5ForConditionalGeneration.from_pretrained(trained.model).eval()
    model = dvp_jax.load_model(trained.model)
    rows = ["summarize: ann : i am in rome", "question: where is bob ? context: bob is in lima ."]
    sources = model.tokenizer(rows, padding=True, return_tensors="np")
    targets = np.array([[0, 5, 9, 3], [0, 7, 1, 0]])
    ours = dvp_jax.teacher_forced_logits(model, sources["input_ids"], sources["attention_mask"], targets)
    with torch.no_grad():
        theirs = peer(
            input_ids=torch.tensor(sources["input_ids"]),
            attention_mask=torch.tensor(sources["attention_mask"]),
            decoder_input_ids=torch.tensor(targets),
        ).logits
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-4)
    assert np.std(ours) > 0.1
    assert peer.config.num_decoder_layers == 2 and peer.config.vocab_size == 44


def test_the_exported_tokenizer_reads_the_training_texts(trained):
    tokenizer = transformers.AutoTokenizer.from_pretrained(trained.model)
    for text in ("ann is in oslo", "question: where is eve ? context: eve is in kiev ."):
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == 1 and 2 not in ids and max(ids) < 44
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_the_plot_has_a_curve_with_a_point_a_depth_for_each_validation(trained):
    text = (trained.workdir / "accuracy_per_depth.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    clipped = [
        path
        for path in root.iter("{http://www.w3.org/2000/svg}path")
        if "clip-path" in path.attrib and "#b0b0b0" not in path.attrib["style"]  # the grid's grey
    ]
    curves = [re.findall(r"[ML] ([\d.]+) ([\d.]+)", path.attrib["d"]) for path in clipped]
    validations = metrics_of(trained, "validation")
    assert [len(curve) for curve in curves] == [2] * len(validations)
    # Upwards in the picture is downwards in its coordinates; all curves share one scale.
    heights = -np.array(curves, float)[:, :, 1].ravel()
    accuracies = np.array([line["accuracy"] for line in validations]).ravel()
    assert np.ptp(accuracies) > 0
    order = np.argsort(accuracies, kind="stable")
    scale = (heights[order[-1]] - heights[order[0]]) / (accuracies[order[-1]] - accuracies[order[0]])
    expected = heights[order[0]] + scale * (accuracies - accuracies[order[0]])
    assert scale > 0
    np.testing.assert_allclose(heights, expected, atol=0.01)
    for line in validations:
        assert f"<!-- step {line['step']} -->" in text


@pytest.mark.slow
def test_training_goes_on_from_an_exported_folder(data, trained):
    # At such a rate nothing but the start can be seen in the parameters.
    run = launch(
        data,
        data / "runs" / "further",
        f"--config.model={trained.model}",
        "--config.train.steps=2",
        "--config.train.learning_rate=1e-9",
    )
    assert run.status == 0, run.stderr
    found, expected = (load_file(folder / "model.safetensors") for folder in (run.model, trained.model))
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        np.testing.assert_allclose(found[name], tensor, atol=1e-7, err_msg=name)
    # It starts at the loss that the best of the other run ended with.
    before = min(metrics_of(trained, "validation"), key=lambda line: line["loss"][0] / 3 + line["loss"][1] * 2 / 3)
    (after,) = metrics_of(run, "validation")
    np.testing.assert_allclose(after["loss"], before["loss"], rtol=1e-4)
    texts = ["ann is in oslo"]
    ids = [transformers.AutoTokenizer.from_pretrained(r.model)(texts)["input_ids"] for r in (run, trained)]
    assert ids[0] == ids[1]


def run_several(data: Path, workdir: Path, count: int, *others: str) -> list[Run]:
    """The launcher as so many processes of one run."""
    logs = [data / f"log-{index}" for index in range(count)]
    for log in logs:
        log.unlink(missing_ok=True)
    processes = [
        start(launch_finetune, log, arguments(data, workdir, *others, *flags))
        for log, flags in zip(logs, process_flags(count), strict=True)
    ]
    return [
        Run(finish(process, log), "", log.read_text(), workdir)
        for process, log in zip(processes, logs, strict=True)
    ]


def assert_same_training(found: Run, expected: Run) -> None:
    """Expects the same curves and the same model, but for the order in which floats are added up."""
    for split in ("train", "validation"):
        for one, other in zip(metrics_of(found, split), metrics_of(expected, split), strict=True):
            assert one["step"] == other["step"]
            np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-5)
    tensors, others = (load_file(run.model / "model.safetensors") for run in (found, expected))
    for name, tensor in others.items():
        np.testing.assert_allclose(tensors[name], tensor, atol=1e-4, err_msg=name)


@pytest.mark.slow  # tests/t5/test_sharding.py trains on a mesh of 8 devices in every run
def test_two_processes_that_divide_the_model_train_as_one_does(data, trained, tmp_path):
    runs = run_several(data, tmp_path / "run", 2, "--config.mesh=1,2")
    assert [run.status for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    assert_same_training(runs[0], trained)


@pytest.mark.slow
def test_two_processes_that_divide_the_rows_train_as_one_does_and_one_goes_on_from_them(data, trained, tmp_path):
    workdir = tmp_path / "run"
    runs = run_several(data, workdir, 2)
    assert [run.status for run in runs] == [0, 0], runs[0].stderr + runs[1].stderr
    assert_same_training(runs[0], trained)
    files = {path.name for path in trained.workdir.iterdir()}
    assert {path.name for path in workdir.iterdir()} == {*files, ".lock-1"}, "a lock for each process"
    for name in ("model", "checkpoints/6"):
        shutil.rmtree(workdir / name)
    run = launch(data, workdir, "--resume")
    assert run.status == 0, run.stderr
    assert_same_training(run, trained)


@pytest.mark.slow
def test_devices_of_several_processes_that_do_not_divide_a_batch_are_refused(data, tmp_path):
    runs = run_several(data, tmp_path / "run", 2, "--config.train.batch_size=3")
    for run in runs:
        assert run.status == 1
        assert "batch_size is 3; allowed: multiples of 2, accumulation 1 times 2 devices along data" in run.stderr
        assert "training" not in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_training_stops_when_one_process_is_killed_and_resumed_ends_as_one_that_was_not(data, tmp_path, dies):
    steps = ["--config.train.steps=100", "--config.train.log_every=1"]
    killed, whole = (
        ["-m", "experiments.finetune", *arguments(data, tmp_path / name, *steps)] for name in ("killed", "whole")
    )
    processes = begin([killed] * 2)
    while not (tmp_path / "killed" / "checkpoints" / "20").is_dir():
        assert processes[dies].poll() is None, processes[dies].communicate()
        time.sleep(0.01)
    processes[dies].kill()
    began = time.monotonic()
    runs = end(processes)
    assert time.monotonic() - began < 60
    assert runs[1 - dies].returncode != 0

    for commands in ([[*killed, "--resume"]] * 2, [whole] * 2):
        for run in end(begin(commands)):
            assert run.returncode == 0, run.stderr
    for name in ("metrics.jsonl", "model/model.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_an_interrupted_run_goes_on_with_resume_and_exports_the_same_model(data, trained):
    workdir = data / "runs" / "interrupted"
    shutil.copytree(trained.workdir, workdir)
    for name in ("model", "checkpoints/6"):
        shutil.rmtree(workdir / name)
    run = launch(data, workdir)
    check_error(run, workdir, "--resume")
    run = launch(data, workdir, "--resume")
    assert run.status == 0, run.stderr
    assert metrics_of(run, "train") == metrics_of(trained, "train")
    assert metrics_of(run, "validation") == metrics_of(trained, "validation")
    found, expected = (load_file(folder / "model.safetensors") for folder in (run.model, trained.model))
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.fixture
def interrupted(data, trained, tmp_path) -> Path:
    """The workdir of a run that has not exported its model."""
    shutil.copytree(trained.workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("name", "field"),
    [("squad_train.json", "made_from.data"), ("samsum_validation.csv", "made_from.validation_data")],
)
def test_a_run_is_not_resumed_with_other_data_under_the_same_path(data, interrupted, tmp_path, name, field):
    shutil.copytree(data, tmp_path / "data", ignore=shutil.ignore_patterns("runs"))
    config = json.loads((interrupted / "config.json").read_text().replace(str(data), str(tmp_path / "data")))
    (interrupted / "config.json").write_text(json.dumps(config))
    del config["made_from"]
    text = (tmp_path / "data" / name).read_text()
    (tmp_path / "data" / name).write_text(text.replace("oslo", "rome"))
    before = files_under(interrupted)
    with pytest.raises(
        ValueError, match=rf"^config differs from that of the run to resume: .*{field} is '.*', was '"
    ):
        finetune(config, interrupted, resume=True)
    assert files_under(interrupted) | {".lock": b""} == before | {".lock": b""}


def test_a_run_that_shall_take_fewer_steps_than_it_has_taken_is_refused_and_stays_as_it_is(interrupted):
    config, before = json.loads((interrupted / "config.json").read_text()), files_under(interrupted)
    del config["made_from"]
    config["train"]["steps"] = 1
    with pytest.raises(ValueError, match=rf"^steps is 1; allowed: at least \d, which the run in {interrupted}"):
        finetune(config, interrupted, resume=True)
    assert files_under(interrupted) | {".lock": b""} == before | {".lock": b""}


def test_a_run_is_not_resumed_from_other_weights_or_with_another_tokenizer(data, trained, interrupted, tmp_path):
    shutil.copytree(trained.model, tmp_path / "model")
    config = {**config_of(data), "model": str(tmp_path / "model")}
    written = json.loads((interrupted / "config.json").read_text())
    made_from = {**written["made_from"], "model": "0", "tokenizer": "1"}
    (interrupted / "config.json").write_text(json.dumps({**config, "made_from": made_from}))
    with pytest.raises(
        ValueError, match=r"made_from.model is '.*', was '0'; made_from.tokenizer is '.*', was '1'"
    ):
        finetune(config, interrupted, resume=True)


def test_a_damaged_config_of_the_run_to_resume_is_named(data, trained, interrupted):
    config = config_of(data, model=str(trained.model))
    (interrupted / "config.json").write_text('{"model": ')
    with pytest.raises(ValueError, match=rf"^{interrupted}/config.json is damaged \(.*\); allowed: .*, or none$"):
        finetune(config, interrupted, resume=True)


# Errors


def check_error(run: Run, *parts: object) -> None:
    """Expects one line "error: ..." with the parts, as the last one, and exit status 1."""
    lines = run.stderr.splitlines()
    assert run.status == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], run.stderr
    assert all(str(part) in lines[-1] for part in parts), lines[-1]


def test_a_finished_run_is_not_run_again(data, trained):
    before = sorted(path.relative_to(trained.workdir) for path in trained.workdir.rglob("*"))
    for others in ([], ["--resume"]):
        check_error(launch(data, trained.workdir, *others), trained.workdir, "finished run", "another workdir")
    assert sorted(path.relative_to(trained.workdir) for path in trained.workdir.rglob("*")) == before


def test_a_second_training_in_a_workdir_is_refused_while_the_first_runs(data, tmp_path):
    message = f"workdir {tmp_path} is in use by process {os.getpid()}; allowed: one"
    with lock_workdir(tmp_path), pytest.raises(OSError, match=f"^{re.escape(message)}$"):
        finetune(config_of(data), tmp_path)


@pytest.mark.slow
def test_no_process_of_a_second_training_goes_on_while_the_first_runs(data, tmp_path):
    message = f"workdir {tmp_path} is in use by process {os.getpid()}; allowed: one"
    with lock_workdir(tmp_path):
        first, second = run_several(data, tmp_path, 2)
    assert f"error: {message}" in first.stderr.splitlines()
    assert first.status == 1 and second.status != 0
    assert not (tmp_path / "config.json").exists()


def test_an_empty_workdir_is_refused_before_anything_is_written(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"^workdir is ''; allowed: the path of a folder$"):
        finetune(config_of(data), "")
    assert list(tmp_path.iterdir()) == []


def test_files_where_the_model_goes_are_refused_before_anything_is_read(data, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").touch()
    with pytest.raises(
        FileExistsError, match=f"^{tmp_path}/model holds .*other files; allowed: a new or an empty f"
    ):
        finetune(config_of(data), tmp_path)


def test_a_missing_data_file_is_named(data, tmp_path):
    run = launch(data, tmp_path / "run", f"--config.tasks.samsum.path={data}/nothing.csv")
    check_error(run, f"no data file {data}/nothing.csv")


def test_an_empty_split_is_named(data, tmp_path):
    empty = tmp_path / "empty.csv"
    empty.write_text("id,dialogue,summary\n")
    run = launch(data, tmp_path / "run", f"--config.validation_tasks.samsum.path={empty}")
    check_error(run, f"{empty} holds no rows")
    assert not (tmp_path / "run" / "model").exists()


def test_depths_that_the_decoder_does_not_have_are_named(data, tmp_path):
    run = launch(data, tmp_path / "run", "--config.train.loss=layers", "--config.train.loss_layers=(1,3)")
    check_error(run, "layers is [1, 3]; allowed: at least one depth from 1 to 2")


def test_an_unknown_field_of_train_is_named(data, tmp_path):
    run = launch(data, tmp_path / "run", "--config.train.stepz=3")
    assert run.status == 1 and "stepz" in run.stderr.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def config_of(data: Path, **changes: object) -> dict:
    fields = {
        "model": None,
        "shape": SHAPE,
        "tokenizer": None,
        "tasks": {"samsum": {"path": f"{data}/samsum_train.csv"}},
        "validation_tasks": {},
        "limit": None,
        "validation_limit": None,
        "train": {"steps": 2, "batch_size": 4},
    }
    return {**fields, **changes}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"train": {"steps": 2, "stepz": 3}}, ValueError, "train has no stepz; allowed: steps, "),
        ({"train": {}}, ValueError, "train.steps is not set"),
        ({"tasks": {}}, ValueError, "config.tasks is {}; allowed: at least one"),
        ({"limit": 0}, ValueError, "limit is 0; allowed: at least 1"),
        ({"tasks": {"samsam": {}}}, ValueError, "task is 'samsam'; allowed: squad, samsum"),
        ({"shape": {"d_model": 16}}, ValueError, "shape has no vocab_size"),
        ({"tokenizer": "/nowhere"}, FileNotFoundError, "tokenizer is '/nowhere', a folder without a tokenizer"),
        ({"model": "/nowhere/model"}, FileNotFoundError, "/nowhere/model"),
        ({"shape": {**SHAPE, "vocab_size": 5000}}, ValueError, "vocab_size is 5000, which the texts do not allow"),
        ({"shape": {"vocab_size": 30, "d_modell": 5}}, ValueError, "d_modell"),
    ],
)
def test_impossible_configs_are_refused_before_anything_is_written(data, tmp_path, changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        finetune(config_of(data, **changes), tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").glob("*")} <= {".lock"}


# Models that start from nothing

TEXTS = [f"{name} is in {city} ." for name in NAMES for city in CITIES]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 30)


def test_a_trained_tokenizer_has_the_ids_of_t5(tokenizer):
    assert len(tokenizer) == 30
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    ids = tokenizer("zzz 7")["input_ids"]  # letters that it never saw
    assert ids[-1] == 1 and 2 in ids
    padded = tokenizer(["ann", "ann is in oslo"], padding=True)
    assert padded["input_ids"][0][-1] == 0 and padded["attention_mask"][0][-1] == 0


def test_a_trained_tokenizer_gives_the_texts_back(tokenizer):
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        assert ids[-1] == 1 and 2 not in ids
        assert len(ids) < len(text)  # pieces, not letters
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_number_is_the_same_piece_before_a_mark_as_within_a_text():
    paragraphs = squad_json(2, 150)["data"][0]["paragraphs"]
    answers = [qa["answers"][0]["text"] for paragraph in paragraphs for qa in paragraph["qas"]]
    tokenizer = train_tokenizer([*(paragraph["context"] for paragraph in paragraphs), *answers] * 5, 800)
    with_marks = [piece for piece in tokenizer.get_vocab() if "." in piece]
    assert with_marks and not any(letter.isdigit() for piece in with_marks for letter in piece)


def test_the_same_texts_train_the_same_tokenizer(tokenizer):
    again = train_tokenizer(list(TEXTS), 30)
    other = train_tokenizer([text.upper() for text in TEXTS], 30)
    assert again.get_vocab() == tokenizer.get_vocab() != other.get_vocab()
    assert [again(text)["input_ids"] for text in TEXTS] == [tokenizer(text)["input_ids"] for text in TEXTS]


def test_a_tokenizer_of_many_texts_knows_both_languages_of_pairs(monkeypatch):
    monkeypatch.setattr(scratch, "MAX_TEXTS", len(TEXTS))  # of twice as many, prompts and references in turn
    pairs = [(text, text.replace("is in", "wohnt hübsch in")) for text in TEXTS]
    tokenizer = train_tokenizer([text for pair in pairs for text in pair], 31)
    assert all(2 not in tokenizer(text)["input_ids"] for pair in pairs for text in pair)


@pytest.mark.parametrize("vocab_size", [5000, 4])
def test_a_vocabulary_that_the_texts_do_not_allow_is_refused(vocab_size):
    with pytest.raises(ValueError, match=f"^vocab_size is {vocab_size}, which the texts do not allow: "):
        train_tokenizer(TEXTS, vocab_size)


def test_a_new_model_has_its_shape_and_its_seed():
    shape = {name: value for name, value in SHAPE.items() if name != "vocab_size"}
    model = new_model(shape, word_tokenizer(), seed=1)
    assert model.config == dvp_jax.T5Config(**{**shape, "vocab_size": 40})  # the tokenizer's
    assert model.tokenizer.pad_token_id == 0
    arrays = flat(model.params)
    assert sorted(a.shape for a in arrays.values()) == sorted(parameter_shapes(model.config).values())
    same, other = (flat(new_model(shape, word_tokenizer(), seed).params) for seed in (1, 2))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, same[name])
        if "scale" not in name:
            assert not np.array_equal(array, other[name]), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_modell": 32}, r"^shape: .*d_modell"),
        ({"d_model": 0}, "^d_model is 0; allowed: an integer from 1 to 2147483647"),
        ({"vocab_size": 39}, "^vocab_size is 39; allowed: at least the tokenizer's, 40"),
    ],
)
def test_impossible_shapes_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        new_model({**SHAPE, **fields}, word_tokenizer(), seed=0)
