"""CALM's meta classifier: its losses, its training, its file and its use in decoding."""

from __future__ import annotations

import dataclasses
import itertools
import math
import types

import jax.numpy as jnp
import numpy as np
import pytest

import dvp_jax
from dvp_jax.t5.exit_classifier import ExitClassifier
from dvp_jax.train.batches import Batches
from dvp_jax.train.meta import agreement, geometric_loss, independent_loss, train_meta, validate_meta
from tests.models import both
from tests.train.helpers import masked_batch

pytestmark = pytest.mark.usefixtures("quick_compiler")

LOGITS = [1.5, -0.5, 2.0]


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


@pytest.mark.parametrize("agrees", list(itertools.product([False, True], repeat=3)))
def test_losses_are_those_of_the_paper(agrees):
    exits = [sigmoid(x) for x in LOGITS]
    logits, labels = (jnp.array(x)[:, None, None] for x in (LOGITS, agrees))
    independent = -sum(math.log(p if y else 1 - p) for p, y in zip(exits, agrees, strict=True)) / 3
    assert float(independent_loss(logits, labels)[0, 0]) == pytest.approx(independent, rel=1e-5)
    first = agrees.index(True) if any(agrees) else 3
    likelihood = math.prod(1 - p for p in exits[:first]) * (exits[first] if first < 3 else 1.0)
    assert float(geometric_loss(logits, labels)[0, 0]) == pytest.approx(-math.log(likelihood), rel=1e-5)


def random_batches(model, examples: int = 64, batch_size: int = 16) -> Batches:
    random = np.random.default_rng(0)
    rows = [random.integers(2, model.config.vocab_size, 8).tolist() for _ in range(2 * examples)]
    return Batches(rows[:examples], rows[examples:], pad_token_id=0, batch_size=batch_size)


@pytest.fixture(scope="module")
def trained():
    _, model = both("t5")
    batches = random_batches(model)
    return model, batches, train_meta(model, batches, steps=60)


def test_agreement_is_that_of_the_depths_own_argmax():
    _, model = both("t5")
    batch = masked_batch(model.config.vocab_size)
    _, agrees = agreement(model.config, model.params, batch)
    assert agrees.shape == (3, 3, 6)
    for depth in (1, 2, 3):
        # A model cut after `depth` layers has the depth's logits as its own.
        cut = dataclasses.replace(model, config=dataclasses.replace(model.config, num_decoder_layers=depth))
        inputs = np.concatenate([np.zeros((2, 1), np.int32), batch.targets[:2, :-1]], axis=1)
        arguments = np.asarray(batch.input_ids[:2]), np.asarray(batch.mask[:2]), inputs
        shallow, deep = (dvp_jax.teacher_forced_logits(m, *arguments) for m in (cut, model))
        np.testing.assert_array_equal(agrees[depth - 1, :2], shallow.argmax(-1) == deep.argmax(-1))


def test_training_beats_the_majority_and_leaves_the_model_alone(trained):
    model, batches, with_meta = trained
    result = validate_meta(with_meta, batches)
    # One classifier for all depths cannot answer by depth alone, so it must read the state to get here.
    pooled = max(np.mean(result["agreement"]), 1 - np.mean(result["agreement"]))
    assert np.mean(result["accuracy"]) > pooled + 0.02, result
    for name in model.params:
        assert with_meta.params[name] is model.params[name]


def test_padding_teaches_the_classifier_nothing():
    _, model = both("t5")
    batch = masked_batch(model.config.vocab_size)
    other = batch.replace(targets=jnp.where(batch.target_mask, batch.targets, 5))
    metas = [
        train_meta(model, types.SimpleNamespace(at=lambda step, each=each: each), steps=3).params["meta"]
        for each in (batch, other)
    ]
    np.testing.assert_array_equal(metas[0].weight, metas[1].weight)
    assert np.any(metas[0].weight != 0)


@pytest.mark.parametrize("format", ["huggingface", "orbax"])
def test_classifier_is_saved_beside_the_model_and_loaded_with_it(trained, tmp_path, format):
    _, _, with_meta = trained
    dvp_jax.save_model(tmp_path / "model", with_meta, format)
    loaded = dvp_jax.load_model(tmp_path / "model", dtype="bfloat16")
    np.testing.assert_array_equal(loaded.params["meta"].weight, with_meta.params["meta"].weight)
    assert loaded.params["meta"].weight.dtype == jnp.float32
    np.testing.assert_array_equal(loaded.params["meta"].bias, with_meta.params["meta"].bias)


def test_a_classifier_of_another_model_is_refused(trained, tmp_path):
    model, _, _ = trained
    meta = ExitClassifier(jnp.zeros(7), jnp.float32(0.0))
    dvp_jax.save_model(tmp_path / "model", dataclasses.replace(model, params={**model.params, "meta": meta}))
    with pytest.raises(ValueError, match=r"wrong shape: weight \(7,\), config.json says \(32,\)"):
        dvp_jax.load_model(tmp_path / "model")


def test_decoding_exits_where_the_classifier_is_confident(trained):
    """Against a loop of full forward passes over models cut at each depth."""
    _, _, model = trained
    random = np.random.default_rng(1)
    ids = random.integers(2, model.config.vocab_size, (3, 7))
    mask = np.ones_like(ids)
    meta = model.params["meta"]

    threshold = 0.5
    cfg = dvp_jax.DecodeConfig(
        method="calm",
        confidence="meta",
        threshold=threshold,
        min_exit_layer=1,
        max_new_tokens=6,
        branch_every=3,
    )
    out = dvp_jax.generate(model, ids, mask, cfg)
    exits = out.exit_layers[out.exit_layers > 0]
    assert len(set(exits.tolist())) > 1  # else this shows nothing

    # The first token attends to no cache, so each depth's state is that of a cut model.
    for row in range(3):
        for depth in range(1, 5):
            config = dataclasses.replace(model.config, num_decoder_layers=depth)
            start = np.zeros((1, 1), np.int32)
            logits = dvp_jax.teacher_forced_logits(
                dataclasses.replace(model, config=config), ids[row : row + 1], mask[row : row + 1], start
            )[0, 0]
            # W has full column rank, so the normed state follows from the logits.
            unembedding = np.asarray(model.params.get("lm_head", model.params["shared"]), np.float64)
            normed = np.linalg.lstsq(unembedding, np.asarray(logits, np.float64), rcond=None)[0]
            normed /= model.config.logit_scale
            confidence = sigmoid(float(normed @ np.asarray(meta.weight, np.float64) + float(meta.bias)))
            if confidence > threshold or depth == 4:
                break
        assert out.exit_layers[row, 0] == depth
        assert out.tokens[row, 0] == int(np.argmax(logits))
        assert out.confidences[row, 0] == pytest.approx(confidence, abs=1e-4)


def test_threshold_one_never_exits(trained):
    _, _, model = trained
    ids = np.random.default_rng(2).integers(2, model.config.vocab_size, (2, 5))
    never = dvp_jax.DecodeConfig(method="calm", confidence="meta", threshold=1.0, max_new_tokens=8)
    full = dvp_jax.DecodeConfig(method="full", max_new_tokens=8)
    outs = [dvp_jax.generate(model, ids, np.ones_like(ids), cfg) for cfg in (never, full)]
    np.testing.assert_array_equal(outs[0].tokens, outs[1].tokens)


def test_meta_without_a_classifier_is_refused():
    _, model = both("t5")
    cfg = dvp_jax.DecodeConfig(method="calm", confidence="meta")
    with pytest.raises(
        ValueError, match="confidence is 'meta', but the model has no meta classifier; allowed: softmax"
    ):
        dvp_jax.generate(model, np.ones((1, 3), np.int32), np.ones((1, 3)), cfg)


def test_dvp_takes_no_measure_that_reads_no_logits():
    with pytest.raises(ValueError, match=r"confidence is 'meta'; allowed with method 'dvp'.*: softmax_diff"):
        dvp_jax.DecodeConfig(method="dvp", confidence="meta")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; allowed: at least 1"),
        ({"steps": 1, "loss": "other"}, "loss is 'other'; allowed: independent, geometric"),
        ({"steps": 1, "learning_rate": float("nan")}, "learning_rate is nan; allowed: a finite number above 0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    _, model = both("t5")
    with pytest.raises(ValueError, match=message):
        train_meta(model, random_batches(model, 4, 4), **options)
