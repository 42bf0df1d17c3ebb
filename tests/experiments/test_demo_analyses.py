"""The analyses on the demo that ships with the package; their figures, worked out again in PyTorch."""

import json

import numpy as np
import pytest
import torch
import transformers

from dvp_jax.data import make_task
from experiments.configs import demo
from tests.analysis.helpers import confidences, depth_logits, pruned, ranks
from tests.launching import launch
from tests.reference import scales

pytestmark = pytest.mark.slow  # a minute: three launchers on the demo

LIMIT, P, K, LAYERS = 4, 1, 64, 14


@pytest.fixture(scope="module")
def peer():
    """Tokens and logits of the full model's own texts, under the name of each task."""
    model = transformers.T5ForConditionalGeneration.from_pretrained(demo.DEMO / "model", dtype="float32").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo.DEMO / "model")
    scale = model.config.d_model**-0.5 if scales(model) else 1.0
    found = {}
    for name, fields in demo.get_config().to_dict()["tasks"].items():
        tokens, logits = [], []
        for example in make_task(name, **fields).load()[:LIMIT]:
            source = tokenizer(example.prompt)["input_ids"]
            # Its cache is sized by the encoder, which is shallower.
            out = model.generate(torch.tensor([source]), max_new_tokens=40, do_sample=False, use_cache=False)
            text = out[0, 1:].tolist()
            tokens += text
            logits.append(scale * depth_logits(model, source, text))
        found[name] = np.array(tokens), np.concatenate(logits)
    return found


@pytest.fixture(scope="module")
def tasks_of(tmp_path_factory):
    def call(name):
        workdir = tmp_path_factory.mktemp(name)
        config = "--config=experiments/configs/demo.py"
        run = launch(name, config, f"--workdir={workdir}", f"--config.limit={LIMIT}", "--config.batch_size=4")
        assert run.returncode == 0, run.stderr
        assert (workdir / "report.html").is_file()
        return json.loads((workdir / f"{name}.json").read_text(encoding="utf-8"))["tasks"]

    return call


def test_ranks_on_the_demo_are_pytorchs(peer, tasks_of):
    for name, report in tasks_of("ranks").items():
        tokens, logits = peer[name]
        expected = ranks(logits, tokens)
        assert report["tokens"] == len(tokens) > LIMIT
        for index, row in enumerate(report["depths"]):
            coverage = [np.mean(expected[:, index] < size) for size in report["sizes"]]
            assert row["coverage"] == pytest.approx(coverage)
            assert row["confidence"] == pytest.approx(confidences(logits[:, index]).mean(), abs=1e-4)


def test_failures_on_the_demo_are_the_tokens_that_pytorch_ranks_below_k(peer, tasks_of):
    for name, reports in tasks_of("failures").items():
        tokens, logits = peer[name]
        (report,) = reports.values()
        lost = ranks(logits, tokens)[:, P - 1] >= K
        assert (report["failures"], report["tokens"]) == (lost.sum(), len(tokens))


def test_calibration_on_the_demo_is_that_of_pytorchs_confidences(peer, tasks_of):
    for name, reports in tasks_of("calibration").items():
        tokens, logits = peer[name]
        (report,) = reports.values()
        seen = {"whole": logits, "pruned": pruned(logits, P, K)}
        rows = [row for row in report["reliability"] if row["target"] == "full model"]
        assert len(rows) == 2 * (LAYERS - P + 1)
        for row in rows:
            at_depth = seen[row["vocabulary"]][:, row["depth"] - 1]
            confidence, correct = confidences(at_depth), at_depth.argmax(axis=-1) == tokens
            bins = np.minimum((confidence * 10).astype(int), 9)
            gaps = [abs(correct[bins == b].sum() - confidence[bins == b].sum()) for b in range(10)]
            assert row["accuracy"] == pytest.approx(correct.mean())
            assert row["ece"] == pytest.approx(sum(gaps) / len(tokens), abs=2e-3)  # a confidence may change bins
