"""The launchers on a tiny random model, as a user starts them, and what they call."""

import dataclasses
import errno
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
import tokenizers
import torch
import transformers
from safetensors.numpy import load_file

import dvp_jax
import dvp_jax.evaluate.check
from dvp_jax.data import Example, make_task
from dvp_jax.decode.token_loop import Decoded
from dvp_jax.evaluate.evaluation import describe, evaluate, make_methods, results_table
from dvp_jax.evaluate.traces import trace_texts
from dvp_jax.runs.files import prepare_workdir, write_whole
from tests.models import random_model, save
from tests.reference import reference_decode

ROOT = Path(__file__).parents[2]
VOCAB_SIZE, D_MODEL, NUM_LAYERS = 600, 32, 4
PREFIX = ["translate", "English", "to", "German", ":", "."]
SYLLABLES = ["".join(letters) for letters in itertools.product("bdfgklmnprst", "aeiou")]
WORDS = PREFIX + ["".join(pair) for pair in itertools.product(SYLLABLES, SYLLABLES)]
PIECES = ["<pad>", "</s>", "<unk>", *WORDS][:VOCAB_SIZE]  # by id
SENTENCES = [
    "baba bade badi bado .",
    "bagu",
    "gulu is no word",
    "bele beme bene bepe bere bese bete bibi bibo bibu bida bide bidi bido bidu .",
    "dada dade",
    "babu babe .",
]
METHODS = {  # experiments/configs/multi30k.py
    "full": {"method": "full"},
    "calm": {"method": "calm", "threshold": 0.5, "min_exit_layer": 2},
    "dvp_64": {"method": "dvp", "threshold": 0.5, "min_exit_layer": 2, "prune_layer": 2, "prune_size": 64},
    "dvp_512": {"method": "dvp", "threshold": 0.5, "min_exit_layer": 2, "prune_layer": 2, "prune_size": 512},
}


@dataclasses.dataclass
class Checkpoint:
    """A random model and tokenizer in a folder, and the same model in PyTorch."""

    folder: Path
    peer: transformers.PreTrainedModel

    def ids(self, prompt: str) -> list[int]:
        """The ids that the tokenizer must give, from the list of pieces alone."""
        words = re.findall(r"\w+|[^\w\s]+", prompt)
        return [PIECES.index(word) if word in PIECES else 2 for word in words] + [1]

    def text(self, tokens: list[int]) -> str:
        """The text that the tokenizer must give."""
        return " ".join(PIECES[token] for token in tokens if token > 2)

    def decode(self, prompt: str, **fields: object):
        """The slow decoder's output."""
        return reference_decode(self.peer, self.ids(prompt), **fields)


def make_checkpoint(folder: Path, seed: int = 1, **fields: int) -> Checkpoint:
    """A random model with a tokenizer whose words are PIECES."""
    peer = random_model("t5.1.1", seed=seed, spread=1.0, depth=2.0, vocab_size=VOCAB_SIZE, **fields)
    with torch.no_grad():
        peer.lm_head.weight[1] *= 1.3  # the end token, so that texts end
    save(peer, folder)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return Checkpoint(folder, peer)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    # Found by trying a few: exits at every depth, texts of different lengths that do not repeat one word.
    return make_checkpoint(tmp_path_factory.mktemp("model"), seed=1)


@pytest.fixture(scope="module")
def shallow(tmp_path_factory):
    """A model that compiles faster, for checks, which compile many programs."""
    return make_checkpoint(tmp_path_factory.mktemp("shallow"), seed=0, num_layers=1, num_decoder_layers=2)


@pytest.fixture(scope="module")
def model(checkpoint):
    return dvp_jax.load_model(checkpoint.folder)


def start(*arguments: object) -> subprocess.CompletedProcess:
    """Runs Python from the root of the repository."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def launch(name: str, *arguments: object) -> subprocess.CompletedProcess:
    return start("-m", f"experiments.{name}", *arguments)


def check_error(run: subprocess.CompletedProcess, *parts: object) -> None:
    """Expects one line "error: ..." with the parts, behind nothing but a progress bar, and exit status 1."""
    lines = run.stderr.splitlines()
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], run.stderr
    assert all(str(part) in lines[-1] for part in parts), run.stderr
    assert run.stdout == ""


def read_lines(path: Path) -> list[dict]:
    """The objects of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files_of(folder: Path) -> list[str]:
    """Names of all files, hidden ones too."""
    return sorted(entry.name for entry in folder.iterdir())


# python -m experiments.evaluate


@dataclasses.dataclass
class Evaluation:
    """One run of the launcher and all it wrote."""

    run: subprocess.CompletedProcess
    workdir: Path
    results: dict
    predictions: list[dict]
    paths: tuple[Path, Path]
    references: list[str]

    def of(self, name: str) -> tuple[dict, list[dict]]:
        """Row and predictions of one method."""
        (row,) = [row for row in self.results["rows"] if row["name"] == name]
        return row, [prediction for prediction in self.predictions if prediction["name"] == name]


def references_for(checkpoint: Checkpoint) -> list[str]:
    """References that share words with the full model's texts, so that no metric is trivial."""
    references = []
    for index, sentence in enumerate(SENTENCES):
        out = checkpoint.decode("translate English to German: " + sentence, method="full", max_new_tokens=12)
        words = checkpoint.text(out.tokens).split()
        references.append(" ".join([*words[index % 2 :], "."]))
    return references


@pytest.fixture(scope="module")
def evaluation(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    references = references_for(checkpoint)
    source, target, workdir = folder / "test.en", folder / "test.de", folder / "runs" / "new"
    source.write_text("\n".join(SENTENCES) + "\n", encoding="utf-8")
    target.write_text("\n".join(references) + "\n", encoding="utf-8")
    run = launch(
        "evaluate",
        "--config=experiments/configs/multi30k.py",
        f"--workdir={workdir}",
        f"--config.model={checkpoint.folder}",
        f"--config.tasks.translation.source_path={source}",
        f"--config.tasks.translation.target_path={target}",
        "--config.batch_size=2",
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((workdir / "results.json").read_text(encoding="utf-8"))
    predictions = read_lines(workdir / "predictions.jsonl")
    return Evaluation(run, workdir, results, predictions, (source, target), references)


def test_evaluate_writes_results_predictions_traces_and_report_and_nothing_else(evaluation):
    plots = [f"translation_bleu_against_{cost}_per_token.svg" for cost in ("confidence_flops", "ms")]
    expected = [".lock", "predictions.jsonl", "report.html", "results.json", "traces.jsonl", *plots]
    assert files_of(evaluation.workdir) == sorted(expected)
    assert {"rows", "model", "config", "versions"} <= set(evaluation.results)
    assert [row["name"] for row in evaluation.results["rows"]] == list(METHODS)  # from plain to pruned most of all
    needed = (
        "task method threshold prune_layer prune_size metric mean_exit_layer num_layers num_examples num_tokens"
    )
    for row in evaluation.results["rows"]:
        assert {*needed.split(), "confidence_flops_per_token", "ms_per_token"} <= set(row)


def test_results_say_what_was_run(evaluation, checkpoint):
    results = evaluation.results
    assert results["model"] == str(checkpoint.folder)
    assert results["config"]["batch_size"] == 2
    source, target = map(str, evaluation.paths)
    assert results["config"]["tasks"] == {"translation": {"source_path": source, "target_path": target}}
    assert results["config"]["methods"] == METHODS
    assert results["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    for package in ("jax", "flax", "transformers", "dvp-jax"):
        assert results["versions"][package] == importlib.metadata.version(package)


@pytest.mark.parametrize("name", METHODS)
def test_settings_in_results_are_those_that_matter_to_the_method(evaluation, name):
    row, _ = evaluation.of(name)
    for field in ("threshold", "min_exit_layer", "prune_layer", "prune_size"):
        assert row[field] == METHODS[name].get(field)
    assert row["method"] == METHODS[name]["method"]
    assert row["task"] == "translation"
    assert row["num_layers"] == NUM_LAYERS
    assert row["num_examples"] == len(SENTENCES)
    assert row["static_exit_layer"] is None and row["decay_temperature"] is None


@pytest.mark.parametrize("name", METHODS)
def test_predictions_equal_the_slow_decoder(evaluation, checkpoint, name):
    _, predictions = evaluation.of(name)
    assert [prediction["id"] for prediction in predictions] == ["0", "1", "2", "3", "4", "5"]
    for sentence, prediction in zip(SENTENCES, predictions, strict=True):
        prompt = "translate English to German: " + sentence
        expected = checkpoint.decode(prompt, max_new_tokens=16, **METHODS[name])  # it is quadratic in this number
        assert prediction["tokens"][:16] == expected.tokens
        assert prediction["exit_layers"][:16] == expected.exit_layers
        # What float32 rounding does to this model: its layers magnify the order in which products add up.
        np.testing.assert_allclose(prediction["confidences"][:16], expected.confidences, atol=1e-3)
        assert prediction["text"] == checkpoint.text(prediction["tokens"])


def test_the_tiny_model_makes_these_tests_mean_something(evaluation):
    exits = {name: {layer for p in evaluation.of(name)[1] for layer in p["exit_layers"]} for name in METHODS}
    assert exits["full"] == {NUM_LAYERS}
    assert exits["calm"] == exits["dvp_64"] == {2, 3, 4}
    assert len({len(prediction["tokens"]) for prediction in evaluation.of("calm")[1]}) > 2
    texts = [[prediction["text"] for prediction in evaluation.of(name)[1]] for name in METHODS]
    assert texts[0] != texts[1] != texts[2] != texts[3]


@pytest.mark.parametrize("name", METHODS)
def test_counts_in_results_are_those_of_the_predictions(evaluation, name):
    row, predictions = evaluation.of(name)
    exit_layers = [layer for prediction in predictions for layer in prediction["exit_layers"]]
    assert row["num_tokens"] == len(exit_layers) == sum(len(prediction["tokens"]) for prediction in predictions)
    assert row["mean_exit_layer"] == pytest.approx(sum(exit_layers) / len(exit_layers))


def test_traces_tell_what_each_depth_said_of_each_token(evaluation, checkpoint):
    traces = read_lines(evaluation.workdir / "traces.jsonl")
    assert [(t["name"], t["id"]) for t in traces] == [(name, str(i)) for name in METHODS for i in range(6)]
    for trace in traces:
        (prediction,) = [p for p in evaluation.of(trace["name"])[1] if p["id"] == trace["id"]]
        assert trace["pieces"] == [PIECES[token] for token in prediction["tokens"]]
        assert trace["exit_layers"] == prediction["exit_layers"]
        assert trace["prompt"] == "translate English to German: " + SENTENCES[int(trace["id"])]
        for t, exit_layer in enumerate(trace["exit_layers"]):
            assert trace["candidates"][t][exit_layer - 1] == trace["pieces"][t]
            assert trace["confidences"][t][exit_layer - 1] == pytest.approx(prediction["confidences"][t], abs=1e-4)
            if trace["name"] == "dvp_64" and 2 < exit_layer < NUM_LAYERS:
                assert trace["ranks"][t] < 64, "only kept tokens can be produced there"
        assert trace["num_layers"] == NUM_LAYERS == len(trace["candidates"][0])
        assert (trace["ranks"] == [None] * len(trace["pieces"])) == (METHODS[trace["name"]]["method"] != "dvp")
        assert trace["prune_size"] == METHODS[trace["name"]].get("prune_size")


def test_every_figure_in_the_results_can_be_worked_out_from_the_files_beside_them(evaluation):
    for row in evaluation.results["rows"]:
        _, predictions = evaluation.of(row["name"])
        tokens = sum(len(prediction["tokens"]) for prediction in predictions)
        assert row["ms_per_token"] == pytest.approx(1e3 * sum(p["decode_s"] for p in predictions) / tokens)
        assert row["encoder_ms_per_example"] == pytest.approx(1e3 * sum(p["encode_s"] for p in predictions) / 6)
    page = (evaluation.workdir / "report.html").read_text(encoding="utf-8")
    for row in evaluation.results["rows"]:
        assert f"{row['ms_per_token']:.2f}" in page and f"{row['metric']['bleu']:.2f}" in page


def test_results_say_what_made_them(evaluation, checkpoint):
    made_by = evaluation.results
    assert made_by["seed"] is None and made_by["device"] == "cpu"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", made_by["time"])
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout
    assert (made_by["git_revision"] or "").removesuffix("-dirty") == head.strip()
    again = dvp_jax.load_model(checkpoint.folder)
    assert made_by["model_fingerprint"] == again.fingerprint
    changed = {**again.params, "shared": again.params["shared"].at[7, 7].add(1e-3)}
    assert dataclasses.replace(again, params=changed).fingerprint != again.fingerprint


@pytest.mark.parametrize("name", METHODS)
def test_confidence_flops_in_results_are_the_papers_sum_over_depths(evaluation, name):
    row, predictions = evaluation.of(name)
    p, kept = METHODS[name].get("prune_layer"), METHODS[name].get("prune_size")
    counts = []
    for exit_layer in (layer for prediction in predictions for layer in prediction["exit_layers"]):
        flops = 0
        if name != "full":
            for depth in range(min(exit_layer, NUM_LAYERS - 1) + 1):
                whole = p is None or depth <= p
                flops += (2 * D_MODEL - 1) * (VOCAB_SIZE if whole else kept)
        counts.append(flops)
    assert row["confidence_flops_per_token"] == pytest.approx(sum(counts) / len(counts), rel=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_metrics_in_results_are_sacrebleus_of_the_predictions(evaluation, name):
    row, predictions = evaluation.of(name)
    texts, references = [prediction["text"] for prediction in predictions], [evaluation.references]
    bleu, chrf = sacrebleu.corpus_bleu(texts, references).score, sacrebleu.corpus_chrf(texts, references).score
    assert row["metric"] == pytest.approx({"bleu": bleu, "chrf": chrf})
    assert name != "full" or 1 < bleu < 99


def test_speed_up_is_the_full_models_time_over_the_methods(evaluation):
    full, _ = evaluation.of("full")
    assert full["speed_up"] == 1.0
    for row in evaluation.results["rows"]:
        assert row["ms_per_token"] > 0 and row["encoder_ms_per_example"] > 0
        assert row["speed_up"] == pytest.approx(full["ms_per_token"] / row["ms_per_token"])


def test_the_printed_table_has_one_line_a_method(evaluation):
    lines = evaluation.run.stdout.splitlines()
    rows = evaluation.results["rows"]
    assert len(lines) == 2 + len(rows)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:4] == ["method", "settings", "bleu", "chrf"]
    for row, shown in zip(rows, cells[2:], strict=True):
        assert len(shown) == len(cells[0]) == len(cells[1])
        assert shown[0] == row["method"]
        assert shown[2:4] == [f"{row['metric']['bleu']:.2f}", f"{row['metric']['chrf']:.2f}"]
        assert shown[4] == f"{row['mean_exit_layer']:.2f} of 4"
        assert float(shown[5]) == pytest.approx(row["confidence_flops_per_token"], rel=5e-3)
        assert shown[6] == f"{row['ms_per_token']:.2f}"
        assert shown[7] == f"{row['speed_up']:.2f}x"
    assert "64" in cells[4][1] and "512" in cells[5][1]


CONFIG = """
from ml_collections import ConfigDict, config_dict

def get_config():
    return ConfigDict({
        "model": config_dict.placeholder(str),
        "dtype": "float32",
        "tasks": {"samsum": {"path": config_dict.placeholder(str), "max_new_tokens": 5}},
        "methods": {
            "early": {"method": "static", "static_exit_layer": 1, "max_new_tokens": 3},
            "plain": {"method": "full"},
        },
        "batch_size": 1,
        "limit": config_dict.placeholder(int),
    })
"""


def test_evaluate_takes_the_first_examples_up_to_limit_of_any_config(checkpoint, tmp_path):
    (tmp_path / "own.py").write_text(CONFIG)
    rows = "".join(f"{index},{sentence},dada dade\n" for index, sentence in enumerate(SENTENCES, start=11))
    (tmp_path / "test.csv").write_text("id,dialogue,summary\n" + rows)
    run = launch(
        "evaluate",
        f"--config={tmp_path / 'own.py'}",
        f"--workdir={tmp_path / 'run'}",
        f"--config.model={checkpoint.folder}",
        f"--config.tasks.samsum.path={tmp_path / 'test.csv'}",
        "--config.limit=3",
    )
    assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    predictions = read_lines(tmp_path / "run" / "predictions.jsonl")
    assert [(p["name"], p["id"]) for p in predictions] == [
        (name, key) for name in ("plain", "early") for key in ("11", "12", "13")
    ]
    for prediction, sentence in zip(predictions, SENTENCES[:3] * 2, strict=True):
        plain = prediction["name"] == "plain"
        fields = {"method": "full"} if plain else {"method": "static", "static_exit_layer": 1}
        expected = checkpoint.decode("summarize: " + sentence, max_new_tokens=5 if plain else 3, **fields)
        assert prediction["tokens"] == expected.tokens
    assert [row["num_examples"] for row in results["rows"]] == [3, 3]
    assert [row["static_exit_layer"] for row in results["rows"]] == [None, 1]
    assert set(results["rows"][0]["metric"]) == {"rougeL", "rouge1", "rouge2", "rougeLsum"}


MULTI30K = "--config=experiments/configs/multi30k.py"


def test_evaluate_refuses_a_workdir_below_a_file(checkpoint, evaluation, tmp_path):
    (tmp_path / "file").write_text("kept")
    workdir = tmp_path / "file" / "run"
    source, target = evaluation.paths
    paths = f"--config.tasks.translation.source_path={source}", f"--config.tasks.translation.target_path={target}"
    run = launch("evaluate", MULTI30K, f"--workdir={workdir}", f"--config.model={checkpoint.folder}", *paths)
    check_error(run, "workdir", workdir)
    assert len(run.stderr.splitlines()) == 1  # before the model is loaded
    assert files_of(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "kept"


def test_evaluate_refuses_to_start_without_a_model(tmp_path):
    run = launch("evaluate", MULTI30K, f"--workdir={tmp_path}")
    check_error(run, "config.model")
    assert len(run.stderr.splitlines()) == 1
    assert files_of(tmp_path) == []


def test_a_field_that_the_config_lacks_is_named(tmp_path):
    run = launch("evaluate", MULTI30K, f"--workdir={tmp_path}", "--config.batchsize=3")
    check_error(run, "--config has no field", "batchsize", "batch_size")


def test_evaluate_names_a_model_folder_without_weights(checkpoint, evaluation, tmp_path):
    empty, workdir = tmp_path / "empty", tmp_path / "run"
    empty.mkdir()
    (empty / "config.json").write_bytes((checkpoint.folder / "config.json").read_bytes())
    source, target = evaluation.paths
    paths = f"--config.tasks.translation.source_path={source}", f"--config.tasks.translation.target_path={target}"
    run = launch("evaluate", MULTI30K, f"--workdir={workdir}", f"--config.model={empty}", *paths)
    check_error(run, empty, "no weights")
    assert not workdir.exists() or files_of(workdir) == [".lock"]


def test_evaluate_names_a_missing_data_file(checkpoint, evaluation, tmp_path):
    source, missing, workdir = evaluation.paths[0], tmp_path / "missing.de", tmp_path / "run"
    paths = f"--config.tasks.translation.source_path={source}", f"--config.tasks.translation.target_path={missing}"
    run = launch("evaluate", MULTI30K, f"--workdir={workdir}", f"--config.model={checkpoint.folder}", *paths)
    check_error(run, missing)
    assert not workdir.exists() or files_of(workdir) == [".lock"]


# dvp_jax.evaluate.evaluation


class Sentences:
    """A task of given sentences; remembers what it was asked to score."""

    name = "sentences"
    max_source_length = 512
    max_new_tokens = 5

    def __init__(self, sentences):
        self.examples = [Example(f"id {i}", s, (s.upper(),)) for i, s in enumerate(sentences)]
        self.scored = []

    def load(self):
        return list(self.examples)

    def score(self, predictions, examples):
        self.scored.append((list(predictions), list(examples)))
        return {"asked": float(len(self.scored))}


class NeverLoaded(Sentences):
    def load(self):
        raise AssertionError("the data were read before the arguments were checked")


FULL = dvp_jax.DecodeConfig(method="full", max_new_tokens=5)
EARLY = dvp_jax.DecodeConfig(method="static", static_exit_layer=2, max_new_tokens=5)


def test_evaluate_keeps_the_order_of_methods_and_of_examples(model, checkpoint):
    task = Sentences(SENTENCES[:4])
    rows, predictions = evaluate(model, task, {"zz": EARLY, "aa": FULL}, batch_size=3)  # 3 of 4 rows, then 1
    assert [(row["name"], row["method"], row["static_exit_layer"]) for row in rows] == [
        ("zz", "static", 2),
        ("aa", "full", None),
    ]
    assert [(p["name"], p["id"]) for p in predictions] == [
        (name, key) for name in ("zz", "aa") for key in ("id 0", "id 1", "id 2", "id 3")
    ]
    early = [
        checkpoint.decode(s, method="static", static_exit_layer=2, max_new_tokens=5).tokens for s in SENTENCES[:4]
    ]
    full = [checkpoint.decode(s, method="full", max_new_tokens=5).tokens for s in SENTENCES[:4]]
    assert [p["tokens"] for p in predictions] == early + full
    texts = [[checkpoint.text(tokens) for tokens in of_method] for of_method in (early, full)]
    assert task.scored == [(texts[0], task.examples), (texts[1], task.examples)]
    assert [row["metric"] for row in rows] == [{"asked": 1.0}, {"asked": 2.0}]
    assert rows[0]["speed_up"] == pytest.approx(rows[1]["ms_per_token"] / rows[0]["ms_per_token"])
    assert rows[1]["speed_up"] == 1.0


def test_there_is_no_speed_up_without_the_full_model(model):
    rows, _ = evaluate(model, Sentences(SENTENCES[:2]), {"one": EARLY}, batch_size=2)
    assert [row["speed_up"] for row in rows] == [None]
    assert "None" not in results_table(rows)


@pytest.mark.parametrize(("limit", "left"), [(1, 1), (2, 2), (9, 3), (None, 3)])
def test_limit_is_the_number_of_examples_at_most(model, limit, left):
    task = Sentences(SENTENCES[:3])
    rows, predictions = evaluate(model, task, {"one": EARLY}, limit=limit)
    assert rows[0]["num_examples"] == left
    assert [p["id"] for p in predictions] == ["id 0", "id 1", "id 2"][:left]
    assert task.scored[0][1] == task.examples[:left]


@pytest.mark.parametrize(
    ("methods", "fields", "parts"),
    [
        ({}, {}, "methods is empty"),
        ({"a": FULL}, {"batch_size": 0}, "batch_size is 0"),
        ({"a": FULL}, {"batch_size": -2}, "batch_size is -2"),
        ({"a": FULL}, {"limit": 0}, "limit is 0"),
        ({"a": dataclasses.replace(EARLY, static_exit_layer=5)}, {}, "static_exit_layer is 5"),
        ({"a": FULL, "b": dvp_jax.DecodeConfig(prune_size=601)}, {}, "prune_size is 601"),
    ],
)
def test_evaluate_refuses_what_cannot_be_before_it_reads_data(model, methods, fields, parts):
    with pytest.raises(ValueError, match=parts):
        evaluate(model, NeverLoaded([]), methods, **fields)


def test_evaluate_refuses_a_model_without_a_tokenizer(model):
    with pytest.raises(ValueError, match="tokenizer"):
        evaluate(dataclasses.replace(model, tokenizer=None), Sentences(["baba"]), {"a": FULL})


RULES = {
    "oracle": {"method": "oracle", "oracle_states": "full", "min_exit_layer": 1},
    "state": {"method": "calm", "confidence": "state", "threshold": 0.8},
    "each": {"method": "calm", "thresholds_per_depth": (1.0, 0.4, 0.2, 1.0), "confidence": "softmax_max"},
    "mass": {"method": "dvp", "threshold": 0.5, "prune_rule": "mass", "prune_mass": 0.8, "min_exit_layer": 3},
    "decay": {"method": "dvp", "threshold": 0.5, "prune_rule": "decay", "prune_size_min": 4},
}


def test_every_rule_is_evaluated_traced_and_described(model, checkpoint):
    task, methods = Sentences(SENTENCES[:2]), make_methods(RULES, 5)
    rows, predictions = evaluate(model, task, methods)
    for prediction, sentence in zip(predictions, len(RULES) * SENTENCES[:2], strict=True):
        expected = checkpoint.decode(sentence, max_new_tokens=5, **RULES[prediction["name"]])
        assert (prediction["tokens"], prediction["exit_layers"]) == (expected.tokens, expected.exit_layers)
    assert {row["name"]: describe(row) for row in rows} == {
        "oracle": "min exit 1, states full",
        "state": "state, threshold 0.8, min exit 2",
        "each": "softmax_max, thresholds 1 0.4 0.2 1, min exit 2",
        "mass": "threshold 0.5, min exit 3, p 2, K 64, mass 0.8",
        "decay": "threshold 0.5, p 2, K 64, K min 4",
    }
    for trace in trace_texts(model, task, methods, rows, predictions, 2):
        exits = range(len(trace["pieces"])), np.array(trace["exit_layers"]) - 1
        assert np.array(trace["candidates"])[exits].tolist() == trace["pieces"]


def test_results_table_is_markdown_of_the_rows():
    nothing = dict.fromkeys(field.name for field in dataclasses.fields(dvp_jax.DecodeConfig))
    row = {
        **nothing,
        "task": "squad",
        "static_exit_layer": 3,
        "method": "static",
        "metric": {"f1": 90.625, "exact_match": 7.0},
        "mean_exit_layer": 3.0,
        "num_layers": 24,
        "confidence_flops_per_token": 0.0,
        "ms_per_token": 12.3456,
        "speed_up": None,
    }
    calm = {
        **row,
        "method": "calm",
        "threshold": 0.9,
        "min_exit_layer": 2,
        "static_exit_layer": None,
        "mean_exit_layer": 7.126,
        "confidence_flops_per_token": 123456789.0,
        "speed_up": 1.2345,
    }
    assert results_table([row, calm]).splitlines() == [
        "| method | settings | f1 | exact_match | mean exit | confidence FLOPs/token | ms/token | speed-up |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| static | exit 3 | 90.62 | 7.00 | 3.00 of 24 | 0 | 12.35 |  |",
        "| calm | threshold 0.9, min exit 2 | 90.62 | 7.00 | 7.13 of 24 | 1.23e+08 | 12.35 | 1.23x |",
    ]


def test_write_whole_writes_utf8_and_replaces_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("a longer old text")
    write_whole(path, ["Bär\n", "zwei\n"])
    assert path.read_bytes() == b"B\xc3\xa4r\nzwei\n"
    assert files_of(tmp_path) == ["file"]


class Interruption(BaseException):
    pass


def broken():
    yield "begun\n" * 10_000
    raise Interruption


@pytest.mark.parametrize("old", [None, "old\n"], ids=["no old file", "old file"])
def test_an_interrupted_write_leaves_things_as_they_were(tmp_path, old):
    path = tmp_path / "file"
    if old is not None:
        path.write_text(old)
    with pytest.raises(Interruption):
        write_whole(path, broken())
    assert files_of(tmp_path) == ([] if old is None else ["file"])
    assert old is None or path.read_text() == old


def test_nobody_sees_a_file_that_is_half_written(tmp_path):
    def parts():
        yield "one\n" * 100_000  # more than any buffer holds
        assert not (tmp_path / "file").exists()
        yield "two\n"

    write_whole(tmp_path / "file", parts())
    assert (tmp_path / "file").read_text() == "one\n" * 100_000 + "two\n"


def test_prepare_workdir_makes_the_folder_and_leaves_it_empty(tmp_path):
    folder = tmp_path / "a" / "b"
    assert prepare_workdir(str(folder)) == folder
    assert files_of(folder) == []
    (folder / "results.json").write_text("{}")
    assert prepare_workdir(folder) == folder
    assert files_of(folder) == ["results.json"]


@pytest.mark.parametrize("below", ["", "run", "run/deeper"])
def test_prepare_workdir_names_a_folder_that_cannot_be_made(tmp_path, below):
    (tmp_path / "file").write_text("kept")
    workdir = tmp_path / "file" / below
    with pytest.raises(OSError, match=f"workdir {re.escape(str(workdir))} cannot be written: [A-Z]"):
        prepare_workdir(workdir)
    assert (tmp_path / "file").read_text() == "kept"


def test_prepare_workdir_names_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    def full_disk(dir):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(dir))

    monkeypatch.setattr(tempfile, "TemporaryFile", full_disk)
    with pytest.raises(OSError, match=f"workdir {tmp_path} cannot be written: {os.strerror(errno.ENOSPC)}"):
        prepare_workdir(tmp_path)


# python -m experiments.generate


def test_generate_prints_the_text_and_the_exit_layer_of_each_token(checkpoint):
    prompt = "translate English to German: " + SENTENCES[0]
    settings = {"method": "dvp", "threshold": 0.4, "min_exit_layer": 2, "prune_layer": 1, "prune_size": 33}
    run = launch(
        "generate",
        f"--model={checkpoint.folder}",
        f"--prompt={prompt}",
        "--max_new_tokens=12",
        *(f"--{name}={value}" for name, value in settings.items()),
    )
    assert run.returncode == 0, run.stderr
    expected = checkpoint.decode(prompt, max_new_tokens=12, **settings)
    assert len(set(expected.exit_layers)) > 1
    text, blank, head, *lines = run.stdout.splitlines()
    assert text == checkpoint.text(expected.tokens)
    assert blank == ""
    assert head.split() == ["token", "exit", "layer", "of", "4", "confidence"]
    cells = [line.split() for line in lines]
    assert [cell[0] for cell in cells] == [PIECES[token] for token in expected.tokens] + ["mean"]
    assert [int(cell[1]) for cell in cells[:-1]] == expected.exit_layers
    assert [float(cell[2]) for cell in cells[:-1]] == pytest.approx(expected.confidences, abs=1e-3)
    assert float(cells[-1][1]) == pytest.approx(sum(expected.exit_layers) / len(expected.exit_layers), abs=0.006)


# python -m experiments.check


def test_benchmark_forces_the_exits_it_names_and_writes_what_it_prints(checkpoint, tmp_path):
    run = launch(
        "benchmark", f"--shape={checkpoint.folder}", "--depths=2,4,0", "--new_tokens=6", "--source_length=5",
        "--rounds=2", f"--results={tmp_path}", "--methods=full", "--methods=static", "--methods=dvp",
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    report = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    (only,) = report["runs"]
    spread = np.random.default_rng(0).integers(2, 5, 6).mean()
    assert [(row["method"], row["mean_depth"]) for row in only["rows"]] == [
        ("full", 4), ("static", 2), ("static", 4), ("dvp", 2), ("dvp", 4), ("dvp", spread)
    ]  # fmt: skip
    for row in only["rows"]:
        assert row["least_ms"] <= row["ms_per_token"] <= row["most_ms"]
        bound = row["megabytes"] * 1e6 / report["runs"][0]["bandwidth"] * 1e3
        np.testing.assert_allclose(row["efficiency"], bound / row["ms_per_token"])
        assert f"| {row['ms_per_token']:.2f} |" in run.stdout
    assert (tmp_path / "time_against_depth.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_benchmark_refuses_a_depth_that_is_not_there(checkpoint):
    run = launch("benchmark", f"--shape={checkpoint.folder}", "--depths=9")
    check_error(run, "depths is [9]", "from 2 to 4")


def test_check_finds_the_tiny_model_the_same_in_every_way(shallow):
    prompts = [f"--prompt=translate English to German: {sentence}" for sentence in SENTENCES[:2]]
    depths = "--min_exit_layer=1", "--prune_layer=1"
    run = launch("check", f"--model={shallow.folder}", *prompts, *depths, "--max_new_tokens=5")
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert all(line.startswith("same ") for line in lines)
    for pair in ("teacher-forced", "static", "calm, threshold 1", "dvp, threshold 1", "prune_size V", "while"):
        assert any(pair in line for line in lines)
    assert sum("alone" in line for line in lines) == 3


WITH_A_DIFFERENCE = """
import runpy, dvp_jax.evaluate.check
different = dvp_jax.evaluate.check.Check("this = that", ["row 3, position 7: one against two"])
dvp_jax.evaluate.check.check_model = lambda *arguments: [dvp_jax.evaluate.check.Check("a = b", []), different]
runpy.run_module("experiments.check", run_name="__main__", alter_sys=True)
"""


def test_check_prints_differences_and_exits_with_1(shallow):
    run = start("-c", WITH_A_DIFFERENCE, f"--model={shallow.folder}")
    assert run.returncode == 1
    assert [line.split() for line in run.stdout.splitlines()] == [
        ["same", "a", "=", "b"],
        ["differs", "this", "=", "that"],
        ["row", "3,", "position", "7:", "one", "against", "two"],
    ]


# evaluate.check, on a decoder that is made up: every way of decoding gives the same, until a test changes one.

CONFIG_OF_2_LAYERS = dvp_jax.T5Config(vocab_size=VOCAB_SIZE, num_decoder_layers=2, decoder_start_token_id=0)
CHECKED = dvp_jax.DecodeConfig(threshold=0.5, min_exit_layer=1, prune_layer=1, prune_size=64, max_new_tokens=5)
SOURCES = np.array([[30, 31, 32, 1], [40, 1, 0, 0]], np.int32)
MASK = SOURCES != 0
TOKENS = {30: [21, 22, 23, 24, 25], 40: [26, 27, 1, 0, 0]}  # by the first token of the source
EXITS = {30: [2, 1, 2, 2, 1], 40: [1, 2, 2, 0, 0]}


class MadeUp:
    """Stands in for `generate` and `teacher_forced_logits`.

    Args:
        when: of source ids and config, which calls give something else.
        changes: what they give: field, row of the batch, position, value.
    """

    def __init__(self, when, changes):
        self.when, self.changes, self.calls, self.prefixes, self.changed = when, changes, [], [], 0

    def generate(self, model, ids, mask, cfg):
        np.testing.assert_array_equal(mask.astype(bool), ids != 0)
        self.calls.append((len(ids), cfg))
        arrays = {
            name: np.array([values[first] for first in ids[:, 0]], np.int32)
            for name, values in (("tokens", TOKENS), ("exit_layers", EXITS))
        }
        lengths = (arrays["exit_layers"] > 0).sum(axis=1)
        if self.when(ids, cfg):
            self.changed += 1
            for name, row, position, value in self.changes:
                assert arrays[name][row, position] != value
                arrays[name][row, position] = value
        return Decoded(lengths=lengths, confidences=np.full(arrays["tokens"].shape, 0.25, np.float32), **arrays)

    def teacher_forced_logits(self, model, ids, mask, prefix):
        self.prefixes.append(np.asarray(prefix).tolist())
        likeliest = np.array([TOKENS[first] for first in ids[:, 0]])
        likeliest[likeliest == 0] = 99  # what a model says after the end of a text means nothing
        return np.eye(VOCAB_SIZE, dtype=np.float32)[likeliest]


@pytest.fixture
def check_with(monkeypatch):
    """Checks the made-up decoder with changes: by check's name, the differences found; and the decoder."""

    def check(when, changes):
        made_up = MadeUp(when, changes)
        monkeypatch.setattr(dvp_jax.evaluate.check, "generate", made_up.generate)
        monkeypatch.setattr(dvp_jax.evaluate.check, "teacher_forced_logits", made_up.teacher_forced_logits)
        checks = dvp_jax.evaluate.check.check_model(dvp_jax.Model(CONFIG_OF_2_LAYERS, {}), SOURCES, MASK, CHECKED)
        assert len({check.name for check in checks}) == len(checks)
        assert made_up.changed or not changes
        return {check.name: check.differences for check in checks if check.differences}, made_up

    return check


def test_check_model_runs_every_method_in_every_way(check_with):
    found, made_up = check_with(lambda ids, cfg: False, [])
    assert found == {}
    # The batch is right and the likeliest tokens come after the tokens before them.
    assert made_up.prefixes == [[[0, 21, 22, 23, 24], [0, 26, 27, 1, 0]]]
    batches = [cfg for rows, cfg in made_up.calls if rows == 2]
    alone = Counter(cfg for rows, cfg in made_up.calls if rows == 1)
    for method in ("full", "calm", "dvp"):
        changed = dataclasses.replace(CHECKED, method=method)
        assert changed in batches and alone[changed] == 2
        for loop in ("while", "cond"):
            assert dataclasses.replace(changed, layer_loop=loop) in batches
    for method in ("calm", "dvp"):
        assert dataclasses.replace(CHECKED, method=method, threshold=1.0) in batches
    assert dataclasses.replace(CHECKED, method="dvp", prune_size=VOCAB_SIZE) in batches
    assert dataclasses.replace(CHECKED, method="static", static_exit_layer=2) in batches


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        ("static", {"method": "static"}),
        ("calm, threshold 1", {"method": "calm", "threshold": 1.0}),
        ("dvp, threshold 1", {"method": "dvp", "threshold": 1.0}),
        ("prune_size V", {"method": "dvp", "prune_size": VOCAB_SIZE}),
        ("full, layer_loop", {"method": "full", "layer_loop": "while"}),
        ("calm, layer_loop", {"method": "calm", "layer_loop": "cond"}),
        ("dvp, layer_loop", {"method": "dvp", "layer_loop": "while"}),
    ],
)
def test_check_model_names_row_and_position_of_another_token(check_with, part, fields):
    def one(ids, cfg):
        return all(getattr(cfg, name) == value for name, value in fields.items())

    # What follows a difference in the same row differs in consequence, and is not reported.
    found, _ = check_with(one, [("tokens", 0, 3, 599), ("tokens", 0, 4, 598)])
    ((name, (difference,)),) = found.items()
    assert part in name
    assert "row 0, position 3" in difference
    assert "token 599 " in difference and "token 24 " in difference and "598" not in difference
    assert "exit 2" in difference and "0.25" in difference


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"method": "calm", "threshold": 0.5}, ["prune_size V", "calm, each row"]),
        ({"method": "dvp", "threshold": 0.5, "prune_size": 64}, ["dvp, each row"]),
        (
            {"method": "full"},
            ["teacher-forced", "static", "calm, threshold 1", "dvp, threshold 1", "full, each row"],
        ),
    ],
)
def test_check_model_compares_with_the_right_decode(check_with, fields, parts):
    def batch(ids, cfg):
        fits = all(getattr(cfg, name) == value for name, value in fields.items())
        return fits and len(ids) == 2 and cfg.layer_loop == "auto"

    found, _ = check_with(batch, [("tokens", 1, 1, 599)])
    assert [part for part in parts if any(part in name for name in found)] == parts
    assert len(found) == len(parts)
    assert all("row 1, position 1" in difference for (difference,) in found.values())


def test_check_model_names_every_row_that_differs(check_with):
    changes = [("tokens", 0, 2, 599), ("tokens", 1, 0, 599)]
    found, _ = check_with(lambda ids, cfg: cfg.method == "static", changes)
    ((_, differences),) = found.items()
    assert len(differences) == 2
    assert "row 0, position 2" in differences[0] and "row 1, position 0" in differences[1]


def test_check_model_finds_another_exit_of_the_same_token(check_with):
    found, _ = check_with(lambda ids, cfg: cfg.method == "static", [("exit_layers", 1, 1, 1)])
    ((name, (difference,)),) = found.items()
    assert "static" in name
    assert "row 1, position 1" in difference and "exit 1" in difference and "exit 2" in difference


@pytest.mark.parametrize("method", ["full", "calm", "dvp"])
def test_check_model_names_the_row_of_the_batch_that_differs_alone(check_with, method):
    def second_alone(ids, cfg):
        return ids.tolist() == [[40, 1]] and cfg.method == method

    found, _ = check_with(second_alone, [("tokens", 0, 1, 599)])
    ((name, (difference,)),) = found.items()
    assert method in name and "alone" in name
    assert "row 1, position 1" in difference and "token 599 " in difference and "token 27 " in difference


def test_check_model_finds_a_full_decode_that_is_not_greedy(check_with):
    found, _ = check_with(lambda ids, cfg: True, [("tokens", 0, 2, 599)])  # all alike, but wrong
    ((name, (difference,)),) = [item for item in found.items() if "alone" not in item[0]]
    assert "teacher-forced" in name
    assert "row 0, position 2" in difference and "token 599 against 23" in difference


# scripts/convert_checkpoint.py


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    there = folder / "orbax"
    back = folder / "deeper" / "huggingface"
    runs = [
        start("scripts/convert_checkpoint.py", f"--source={source}", f"--output={output}", f"--format={format}")
        for source, output, format in ((checkpoint.folder, there, "orbax"), (there, back, "huggingface"))
    ]
    return runs, there, back


def test_conversion_to_orbax_and_back_keeps_every_tensor(checkpoint, converted):
    runs, there, back = converted
    assert [run.returncode for run in runs] == [0, 0], [run.stderr for run in runs]
    assert (there / "params").is_dir() and not list(there.glob("*.safetensors"))
    expected, found = (load_file(folder / "model.safetensors") for folder in (checkpoint.folder, back))
    assert set(found) == set(expected) and "lm_head.weight" in found
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


def test_conversion_takes_config_and_tokenizer_along_and_leaves_no_partial_folder(checkpoint, converted):
    _, there, back = converted
    assert files_of(there.parent) == ["deeper", "orbax"] and files_of(back.parent) == ["huggingface"]
    fields = json.loads((checkpoint.folder / "config.json").read_text())
    for folder in (there, back):
        converted_fields = json.loads((folder / "config.json").read_text())
        for name in ("model_type", "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers"):
            assert converted_fields[name] == fields[name]
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        assert tokenizer(SENTENCES[2])["input_ids"] == checkpoint.ids(SENTENCES[2])


def test_conversion_refuses_a_folder_that_holds_a_checkpoint(checkpoint, converted):
    _, _, back = converted
    before = {path: path.read_bytes() for path in back.iterdir()}
    source = f"--source={checkpoint.folder}"
    run = start("scripts/convert_checkpoint.py", source, f"--output={back}", "--format=orbax", "--dtype=bfloat16")
    check_error(run, back, "checkpoint already")
    assert {path: path.read_bytes() for path in back.iterdir()} == before
    assert files_of(back.parent) == ["huggingface"]


# dvp_jax.runs.launch

LAUNCHED = """
import sys
from dvp_jax.runs import launch

def bad(error):
    raise error

for main, arguments in [
    (lambda: None, []),
    (lambda: 3, []),
    (lambda: bad(ValueError("no good")), []),
    (lambda: bad(OSError("no disk")), []),
    (lambda: bad(ImportError("no torch")), []),
    (lambda: print("was called"), ["stray"]),
]:
    sys.argv[1:] = arguments
    try:
        launch.run(main)
    except SystemExit as exit:
        print("status", exit.code)
sys.argv[1:] = []
launch.run(lambda: bad(KeyError("a bug")))
"""


def test_launchers_show_bad_input_as_one_line_and_bugs_as_a_traceback():
    run = start("-c", LAUNCHED)
    # absl prints its usage to stdout too.
    assert [line for line in run.stdout.splitlines() if line.startswith("status")] == [
        f"status {code}" for code in (None, 3, 1, 1, 1, 1)
    ]
    assert "was called" not in run.stdout
    before, _, after = run.stderr.partition("Traceback")
    errors = [line for line in before.splitlines() if line.startswith("error: ")]
    assert errors == ["error: no good", "error: no disk", "error: no torch"]
    assert "stray" in run.stdout + run.stderr
    assert "a bug" in after and run.returncode == 1


def test_launchers_show_bad_input_as_a_traceback_when_asked_to():
    raising = "from dvp_jax import launch; launch.run(lambda: int('x'))"
    run = start("-c", raising, "--verbosity=1")
    assert run.returncode == 1 and "Traceback" in run.stderr


def test_settings_are_ordered_full_first_and_unknown_fields_are_named():
    methods = make_methods({"a": {"method": "dvp", "prune_size": 9}, "b": {"method": "full"}}, 7)
    assert list(methods) == ["b", "a"]
    assert [cfg.max_new_tokens for cfg in methods.values()] == [7, 7]
    with pytest.raises(
        ValueError, match=r"methods\.a has no treshold; allowed: method, max_new_tokens, threshold"
    ):
        make_methods({"a": {"treshold": 0.5}}, 7)


def test_the_config_of_multi30k_names_a_task_that_can_be_made():
    from experiments.configs import multi30k

    config = multi30k.get_config()
    assert config.methods.to_dict() == METHODS
    assert [make_task(name, **fields).name for name, fields in config.tasks.items()] == ["translation"]
    assert (config.model, config.limit, config.batch_size) == (None, None, 1)
