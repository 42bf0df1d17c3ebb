"""The launchers that look into texts, on a tiny random model; their figures, worked out again in PyTorch."""

import dataclasses
import functools
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve

from dvp_jax.evaluate.evaluation import make_methods
from dvp_jax.t5.config import SHAPES, T5Config
from experiments.configs.tuned_thresholds import get_config
from tests.analysis.helpers import confidences, depth_logits, pruned, ranks
from tests.launching import (
    SENTENCES,
    Checkpoint,
    call,
    check_error,
    files_of,
    launch,
    run_launcher,
)
from tests.reference import confidence_of
from tests.report.helpers import texts_of

CONFIG = """
from experiments.configs.common import evaluation

def get_config():
    task = {{"source_path": "{folder}/test.en", "target_path": "{folder}/test.de", "max_new_tokens": 6}}
    config = evaluation(model="{model}", tasks={{"translation": task}}, threshold=0.3, prune_sizes=(8,))
    config.batch_size, config.limit = 8, 5
    return config
"""
REFERENCES = ["dada dade", "bele beme .", "bagu", "bibo bibu bida", "babu babe .", "never read"]
LAYERS, VOCAB_SIZE, P, K = 4, 600, 2, 8


@dataclasses.dataclass
class Peer:
    """What PyTorch says of the same texts, token after token."""

    checkpoint: Checkpoint
    config: str
    texts: list[list[int]]  # of the full model
    logits: np.ndarray  # (tokens, depths, vocabulary) of these
    reference_logits: np.ndarray

    @property
    def tokens(self) -> np.ndarray:
        return np.concatenate(self.texts)

    @property
    def ranks(self) -> np.ndarray:
        return ranks(self.logits, self.tokens)


@pytest.fixture(scope="module")
def peer(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyses")
    (folder / "test.en").write_text("\n".join(SENTENCES) + "\n")
    (folder / "test.de").write_text("\n".join(REFERENCES) + "\n")
    (folder / "config.py").write_text(CONFIG.format(folder=folder, model=checkpoint.folder))
    sources = [checkpoint.ids("translate English to German: " + sentence) for sentence in SENTENCES[:5]]
    texts = [generated(checkpoint, source) for source in sources]

    def logits(rows):
        pairs = zip(sources, rows, strict=True)
        return np.concatenate([depth_logits(checkpoint.peer, source, row) for source, row in pairs])

    references = [checkpoint.ids(reference) for reference in REFERENCES[:5]]
    return Peer(checkpoint, f"--config={folder / 'config.py'}", texts, logits(texts), logits(references))


def generated(checkpoint: Checkpoint, source: list[int]) -> list[int]:
    """The full model's text, from the last depth's logits alone."""
    text: list[int] = []
    while len(text) < 6 and text[-1:] != [1]:
        text.append(int(depth_logits(checkpoint.peer, source, [*text, 0])[-1, -1].argmax()))
    return text


@dataclasses.dataclass
class Outcome:
    """A run of a launcher, its data file and what else it wrote."""

    run: subprocess.CompletedProcess
    data: dict
    workdir: Path

    @property
    def files(self) -> list[str]:
        return files_of(self.workdir)


@pytest.fixture(scope="module")
def launched(peer, tmp_path_factory) -> Callable[..., Outcome]:
    def outcome_of(name: str, *arguments: str, run: Callable[[], None] | None = None) -> Outcome:
        workdir = tmp_path_factory.mktemp(name) / "new"
        done = call(run or functools.partial(run_launcher, name), peer.config, f"--workdir={workdir}", *arguments)
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f"\n\nreport: {workdir / 'report.html'}\n")
        return Outcome(done, json.loads((workdir / f"{name}.json").read_text(encoding="utf-8")), workdir)

    return outcome_of


@pytest.fixture(scope="module")
def ranked(launched):
    return launched("ranks")


def test_ranks_reports_where_the_final_choice_stood_at_each_depth(peer, ranked):
    out = ranked
    report = out.data["tasks"]["translation"]
    assert (report["tokens"], report["texts"]) == (len(peer.tokens), 5)
    assert report["sizes"] == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600]
    assert out.data["config"]["limit"] == 5 and out.data["model"] == str(peer.checkpoint.folder)
    expected = peer.ranks
    for index, row in enumerate(report["depths"]):
        at_depth = np.sort(expected[:, index]) + 1
        assert row["coverage"] == pytest.approx([np.mean(at_depth <= size) for size in report["sizes"]])
        assert row["agreement"] == pytest.approx(np.mean(at_depth == 1))
        assert row["confidence"] == pytest.approx(confidences(peer.logits[:, index]).mean(), abs=1e-5)
        assert row["size_for_coverage"] == at_depth[int(np.ceil(0.99 * len(at_depth))) - 1]
    assert out.files == [
        ".lock",
        *(f"{plot}_translation.svg" for plot in ("agreement", "coverage")),
        "ranks.json",
        "ranks_translation.svg",
        "report.html",
    ]
    assert f"| {LAYERS} | 100.00 |" in out.run.stdout


def test_plot_agreement_draws_how_often_each_depth_has_the_final_choice(peer, ranked, tmp_path):
    plot = tmp_path / "agreement.svg"
    run = launch("plot_agreement", f"--runs=before={ranked.workdir},after={ranked.workdir}", f"--output={plot}")
    shares = [f"{100 * np.mean(peer.ranks[:, index] == 0):.1f}" for index in range(LAYERS)]
    assert float(shares[0]) < 100.0 == float(shares[-1])
    assert run.stdout.splitlines()[2:] == [f"| {' | '.join([name, *shares])} |" for name in ("before", "after")]
    assert {"before", "after", "agreement with the last depth, % of tokens"} <= texts_of(plot)


def test_plot_agreement_refuses_a_folder_without_ranks_and_a_task_that_was_not_ranked(ranked, tmp_path):
    plot, edited = tmp_path / "agreement.svg", tmp_path / "edited"
    edited.mkdir()
    (edited / "ranks.json").write_text('{"tasks": {"translation": {"depths": [{"agreement": "?"}]}}}')
    for runs, task, *parts in (
        (f"one={ranked.workdir}", "squad", "task is 'squad'", "ranks.json", "allowed: translation"),
        (f"one={tmp_path}", "translation", "task is 'translation'", "finished run of experiments.ranks"),
        (f"one={edited}", "translation", f"{edited}/ranks.json", "as experiments.ranks has written it"),
    ):
        check_error(launch("plot_agreement", f"--runs={runs}", f"--task={task}", f"--output={plot}"), *parts)
    assert not plot.exists()


def test_failures_counts_the_tokens_that_pruning_lost(peer, launched):
    out = launched("failures", "--examples=3")
    report = out.data["tasks"]["translation"]["dvp_8"]
    lost = peer.ranks[:, P - 1] >= K
    assert 0 < lost.sum() < len(lost)  # else the test says nothing
    where = [(text, t) for text, tokens in enumerate(peer.texts) for t in range(len(tokens))]
    cases = [(int(case["id"]), case["position"]) for case in report["cases"]]
    assert cases == [place for place, is_lost in zip(where, lost, strict=True) if is_lost]
    assert (report["failures"], report["tokens"]) == (lost.sum(), len(lost))
    assert (report["prune_layer"], report["prune_size"]) == (P, K)

    fields = {"method": "dvp", "threshold": 0.3, "min_exit_layer": P, "prune_layer": P, "prune_size": K}
    seen = set()
    for case in report["cases"]:
        text, t = int(case["id"]), case["position"]
        prompt = "translate English to German: " + SENTENCES[text]
        decoded = peer.checkpoint.decode(prompt, max_new_tokens=6, **fields)
        parted = decoded.tokens[:t] != peer.texts[text][:t]
        same = decoded.tokens[t : t + 1] == peer.texts[text][t : t + 1]
        seen.add(case["outcome"])
        assert case["token"] == peer.checkpoint.text([peer.texts[text][t]])
        if parted:
            assert (case["outcome"], case["produced"]) == ("already another text", None)
        else:
            assert case["outcome"] == ("the same token" if same else "another token")
            assert case["exit_layer"] == decoded.exit_layers[t]
            assert case["produced"] == peer.checkpoint.text([decoded.tokens[t]])
    assert len(seen) > 1
    assert out.files == [".lock", "failures.json", "failures_translation_dvp_8.svg", "report.html"]
    assert f"| all | {lost.sum()} | {len(lost)} |" in out.run.stdout


def test_calibration_measures_pruned_and_whole_confidence_against_both_texts(peer, launched):
    out = launched("calibration", "--exit_threshold=0.4", "--bins=5")
    report = out.data["tasks"]["translation"]["dvp_8"]
    references = np.concatenate([peer.checkpoint.ids(reference) for reference in REFERENCES[:5]])
    truths = {"full model": (peer.logits, peer.tokens), "reference": (peer.reference_logits, references)}
    assert len(report["reliability"]) == 2 * 2 * 3
    for row in report["reliability"]:
        logits, right = truths[row["target"]]
        seen = (pruned(logits, P, K) if row["vocabulary"] == "pruned" else logits)[:, row["depth"] - 1]
        confidence, correct = confidences(seen), seen.argmax(axis=-1) == right
        accuracies, means = calibration_curve(correct, confidence, n_bins=5)
        counts = [each["tokens"] for each in row["bins"] if each["tokens"]]
        assert sum(counts) == len(right) == row["tokens"]
        assert row["ece"] == pytest.approx(np.average(np.abs(accuracies - means), weights=counts), abs=1e-4)
        assert row["mce"] == pytest.approx(np.abs(accuracies - means).max(), abs=1e-4)
        assert row["accuracy"] == pytest.approx(correct.mean())

    whole, kept = peer.logits, pruned(peer.logits, P, K)
    for row in report["thresholds"]:
        depths = [P, P + 1] if row["depth"] is None else [row["depth"]]
        for name, logits in (("whole", whole), ("pruned", kept)):
            index = [depth - 1 for depth in depths]
            leaves = confidences(logits[:, index]) > 0.4
            agrees = logits[:, index].argmax(axis=-1) == peer.tokens[:, None]
            first = leaves & (np.cumsum(leaves, axis=1) == 1)
            assert row[name]["share"] == pytest.approx(leaves.any(axis=1).mean())
            assert row[name]["agreement"] == pytest.approx(agrees[first].mean())
    assert [row["depth"] for row in report["thresholds"]] == [None, 2, 3]
    assert out.files == [
        ".lock",
        "calibration.json",
        "reliability_translation_dvp_8_full.svg",
        "reliability_translation_dvp_8_reference.svg",
        "report.html",
    ]
    assert f"| all | 0.4 | {100 * report['thresholds'][0]['whole']['agreement']:.2f} (" in out.run.stdout


def test_thresholds_are_the_smallest_whose_exits_agree_and_make_a_config(peer, launched):
    out = launched("thresholds", "--share=0.75")
    rows = {row["name"]: row for row in out.data["tasks"]["translation"]}
    logits, hidden = ["softmax_diff", "softmax_max", "entropy"], ["state"]
    assert list(rows) == [f"calm_{name}" for name in (*logits, *hidden)] + [f"dvp_8_{name}" for name in logits]
    found = tried = 0
    apart = 1e-4  # closer ones may fall in another order: float32 rounding moves these confidences by over 1e-5
    for name, row in rows.items():
        thresholds = row["settings"]["thresholds_per_depth"]
        assert thresholds[: P - 1] == [1.0] and thresholds[-1] == 1.0
        assert sum(row["exits"]) == len(peer.tokens)
        if row["settings"]["confidence"] in hidden:
            continue
        read = pruned(peer.logits, P, K) if name.startswith("dvp") else peer.logits
        staying = np.ones(len(peer.tokens), bool)
        for depth in range(P, LAYERS):
            sure = np.array([
                confidence_of(torch.from_numpy(of_token), np.isfinite(of_token), row["settings"]["confidence"])
                for of_token in read[:, depth - 1]
            ])  # fmt: skip
            agrees = read[:, depth - 1].argmax(axis=-1) == peer.tokens
            leaves = staying & (sure > thresholds[depth - 1] + apart)
            assert (row["exits"][depth - 1], row["agreeing"][depth - 1]) == (leaves.sum(), (leaves & agrees).sum())
            assert not leaves.any() or agrees[leaves].mean() >= 0.75
            for lower in sure[staying & (sure < thresholds[depth - 1] - apart)]:
                if (staying & (np.abs(sure - lower) < apart)).sum() == 1:
                    assert agrees[staying & (sure > lower + apart)].mean() < 0.75
                    tried += 1
            staying &= ~leaves
            found += leaves.sum()
    assert found > 0 and tried > 10  # else nothing left at all
    assert out.files == [".lock", "report.html", "thresholds.json"]

    config = get_config(str(out.workdir / "thresholds.json")).to_dict()
    methods = make_methods(config["methods"], 6)
    assert set(methods) == {"full", *rows}
    for name, row in rows.items():
        assert methods[name].thresholds_per_depth == tuple(row["settings"]["thresholds_per_depth"])
        assert methods[name].method == name.split("_")[0] and name.endswith(methods[name].confidence)
    assert config["tasks"] == out.data["config"]["tasks"] and config["model"] == out.data["model"]
    with pytest.raises(ValueError, match=r"task is 'squad'.*allowed: translation"):
        get_config(f"{out.workdir / 'thresholds.json'},squad")


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "{}",
        '{"config": {}, "tasks": {"squad": []}}',
        '{"config": {"tasks": {"squad": {}}}, "tasks": {"squad": [{}]}}',
    ],
)
def test_thresholds_that_were_edited_are_named(tmp_path, content):
    path = tmp_path / "thresholds.json"
    path.write_text(content)
    message = rf"^{re.escape(str(path))} \(.*\); allowed: a file as experiments.thresholds has written it$"
    with pytest.raises(ValueError, match=message):
        get_config(str(path))
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"^no file {re.escape(str(path))}$"):
        get_config(str(path))


def run_vocab_scaling_with_a_tiny_shape() -> None:
    fields = {"d_model": 16, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 1, "num_decoder_layers": 3}
    SHAPES["tiny"] = T5Config(**fields)
    run_launcher("vocab_scaling")


@pytest.mark.slow
def test_vocab_scaling_times_confidence_and_finds_the_size_that_is_needed(peer, launched):
    small = ("--shape=tiny", "--source_length=8", "--new_tokens=2", "--rounds=1", "--prune_size=5")
    small += "--vocab_sizes=90", "--exit_layer=3"
    out = launched("vocab_scaling", *small, run=run_vocab_scaling_with_a_tiny_shape)
    rows = out.data["rows"]
    assert [(row["vocab_size"], row["method"]) for row in rows] == [(90, "calm"), (90, "dvp")]
    for row in rows:
        # Depths 0, 1 and 2 as the paper counts: up to p `dvp` reads the whole vocabulary too.
        assert row["confidence_flops_per_token"] == (2 * 16 - 1) * 90 * 3
        # A product at depth 2 and, where nothing left, at the last one; that of `static` is taken off.
        assert row["unembedding_flops_per_token"] == 2 * 16 * 90
        assert row["exit_layer"] == 3 and row["prune_size"] == (None if row["method"] == "calm" else 5)
        assert row["ms_per_token"] > 0 and row["confidence_ms_per_token"] < row["ms_per_token"]
    at_p = np.sort(peer.ranks[:, P - 1]) + 1
    assert out.data["coverage"]["translation"] == [
        {
            "prune_layer": P,
            "coverage": 0.99,
            "prune_size": at_p[int(np.ceil(0.99 * len(at_p))) - 1],
            "vocab_size": VOCAB_SIZE,
            "tokens": len(at_p),
        }
    ]
    assert out.files == [".lock", "report.html", "vocab_scaling.json", "vocab_scaling.svg"]
    assert out.data["timing"]["shape"] == "tiny" and out.data["timing"]["rounds"] == 1
    assert "| 90 | calm |" in out.run.stdout and f"| translation | {P} |" in out.run.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--shape=none"], ["shape", "'none'", "t5-small"]),
        (["--exit_layer=13"], ["exit_layer is 13", "2 to 12"]),
        (["--vocab_sizes=8000,10"], ["vocab_sizes", "prune_size, 64"]),
    ],
)
def test_vocab_scaling_refuses_what_cannot_be_timed(arguments, parts, tmp_path):
    check_error(launch("vocab_scaling", f"--workdir={tmp_path}", *arguments), *parts)


@pytest.mark.parametrize("name", ["failures", "calibration"])
def test_a_config_without_a_pruned_method_is_refused(peer, name, tmp_path):
    run = launch(name, peer.config, f"--workdir={tmp_path}", "--config.methods.dvp_8.method=calm")
    check_error(run, "config.methods", "dvp_8", "none of method 'dvp'")
    assert len(run.stderr.splitlines()) == 1  # before the model is loaded
    assert files_of(tmp_path) == [".lock"]
