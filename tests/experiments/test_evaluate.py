"""`python -m experiments.evaluate` on a tiny random model."""

import dataclasses
import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sacrebleu

import dvp_jax
from dvp_jax.data import make_task
from experiments.configs import multi30k
from tests.launching import (
    D_MODEL,
    NUM_LAYERS,
    PIECES,
    ROOT,
    SENTENCES,
    VOCAB_SIZE,
    Checkpoint,
    check_error,
    files_of,
    launch,
    read_lines,
    start,
)

MULTI30K = "--config=experiments/configs/multi30k.py"
METHODS = {  # of this config
    "full": {"method": "full"},
    "calm": {"method": "calm", "threshold": 0.5, "min_exit_layer": 2},
    "dvp_64": {"method": "dvp", "threshold": 0.5, "min_exit_layer": 2, "prune_layer": 2, "prune_size": 64},
    "dvp_512": {"method": "dvp", "threshold": 0.5, "min_exit_layer": 2, "prune_layer": 2, "prune_size": 512},
}


@dataclasses.dataclass
class Evaluation:
    """One run of the launcher and all that it wrote."""

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
    run = start(
        "-m",
        "experiments.evaluate",
        MULTI30K,
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
        expected = checkpoint.decode(
            prompt, max_new_tokens=16, **METHODS[name]
        )  # the slow decoder is quadratic in this
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
                full = p is None or depth <= p
                flops += (2 * D_MODEL - 1) * (VOCAB_SIZE if full else kept)
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


def test_the_printed_table_has_one_line_a_method_and_the_last_line_is_the_reports_path(evaluation):
    *lines, blank, report = evaluation.run.stdout.splitlines()
    assert (blank, report) == ("", f"report: {evaluation.workdir / 'report.html'}")
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
    check_error(run, """--config has no field 'batchsize' Did you mean "batch_size" instead of "batchsize"?""")


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


def test_the_config_of_multi30k_names_a_task_that_can_be_made():
    config = multi30k.get_config()
    assert config.methods.to_dict() == METHODS
    assert [make_task(name, **fields).name for name, fields in config.tasks.items()] == ["translation"]
    assert (config.model, config.limit, config.batch_size) == (None, None, 1)
