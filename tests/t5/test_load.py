"""The precision of matrix products, read from the programs, as a CPU ignores it; tokenizers with byte fallback."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sentencepiece
import transformers

import dvp_jax
from dvp_jax.decode import api, lanes, trace
from dvp_jax.decode.api import encode, lower_decode
from dvp_jax.t5.load import load_tokenizer
from dvp_jax.train import meta, trainer
from dvp_jax.train.batches import Batch
from tests.models import both, random_model, save

pytestmark = pytest.mark.usefixtures("quick_compiler")

MODEL = ("t5.1.1", 0)
IDS = np.array([[3, 4, 5, 1]])
MASK = np.ones_like(IDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(random_model(*MODEL, num_layers=1, num_decoder_layers=3), tmp_path_factory.mktemp("model"))


def precisions(text):
    """The precision of each matrix product of a program in StableHLO: that of its two factors."""
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products
    return {tuple(re.search(r"precision = \[(\w+), (\w+)\]", line).groups()) for line in products}


def decode_precisions(model, **fields):
    cfg = dvp_jax.DecodeConfig(max_new_tokens=4, prune_size=20, **fields)
    return precisions(lower_decode(model, encode(model, IDS, MASK), cfg)[0].as_text())


@pytest.mark.parametrize(
    ("dtype", "precision", "expected"),
    [
        ("float32", None, "HIGHEST"),
        ("float32", "highest", "HIGHEST"),
        ("float32", "high", "HIGH"),
        ("float32", "default", "DEFAULT"),
        ("bfloat16", None, "DEFAULT"),
        ("bfloat16", "highest", "HIGHEST"),
    ],
)
def test_decoding_multiplies_at_the_models_precision(folder, dtype, precision, expected):
    model = dvp_jax.load_model(folder, dtype, precision=precision)
    assert decode_precisions(model, method="dvp") == {(expected, expected)}


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "full"},
        {"method": "calm"},
        {"method": "dvp", "unembedding": "int8"},
        {"method": "shallow_deep"},
        {"method": "oracle"},
    ],
    ids=str,
)
def test_every_product_of_every_method_is_at_full_precision(folder, fields):
    assert decode_precisions(dvp_jax.load_model(folder), **fields) == {("HIGHEST", "HIGHEST")}


def lowered_texts(monkeypatch, module, name, *, runs=False):
    """The programs of a module's jitted function from now on, in StableHLO. Unless it runs, it returns ones."""
    texts, jitted = [], getattr(module, name)

    def call(*args):
        lowered = jitted.lower(*args)
        texts.append(lowered.as_text())
        return jitted(*args) if runs else jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), lowered.out_info)

    monkeypatch.setattr(module, name, call)
    return texts


def test_encoder_and_teacher_forcing_multiply_at_full_precision(folder, monkeypatch):
    model = dvp_jax.load_model(folder)
    encoders, forward_passes = (lowered_texts(monkeypatch, api, name) for name in ("_encode", "_forward"))
    encode(model, IDS, MASK)
    dvp_jax.teacher_forced_logits(model, IDS, MASK, IDS)
    assert precisions(encoders[0]) == precisions(forward_passes[0]) == {("HIGHEST", "HIGHEST")}


def test_traces_multiply_at_full_precision(folder, monkeypatch):
    model = dvp_jax.load_model(folder)
    texts = lowered_texts(monkeypatch, trace, "_trace")
    cfg = dvp_jax.DecodeConfig(max_new_tokens=4, prune_size=20)
    trace.trace(model, encode(model, IDS, MASK), IDS, np.full_like(IDS, 2), cfg)
    assert precisions(texts[0]) == {("HIGHEST", "HIGHEST")}


def test_the_engine_multiplies_at_full_precision(folder, monkeypatch):
    model = dvp_jax.load_model(folder)
    texts = lowered_texts(monkeypatch, lanes, "_advance", runs=True)
    engine = dvp_jax.Engine(model, dvp_jax.DecodeConfig(max_new_tokens=2, prune_size=20), slots=1)
    list(engine.run([IDS[0].tolist()]))
    assert precisions(texts[0]) == {("HIGHEST", "HIGHEST")}


class OneBatch:
    """The same source and target at every step."""

    def at(self, index):
        return Batch(*map(jnp.asarray, (IDS, MASK > 0, IDS, MASK > 0)))

    def once(self):
        return [self.at(0)]


@pytest.mark.parametrize(("dtype", "expected"), [("float32", "HIGHEST"), ("bfloat16", "DEFAULT")])
def test_training_multiplies_at_full_precision_in_float32_only(folder, tmp_path, monkeypatch, dtype, expected):
    steps, validations = (lowered_texts(monkeypatch, trainer, name) for name in ("train_step", "_validation_sums"))
    cfg = trainer.TrainConfig(steps=1, batch_size=1, dtype=dtype)
    trainer.train(dvp_jax.load_model(folder), OneBatch(), OneBatch(), cfg, tmp_path)
    assert precisions(steps[0]) == {(expected, expected)}
    assert precisions(validations[0]) == {("HIGHEST", "HIGHEST")}  # in float32 in any case


def test_the_meta_classifier_learns_at_full_precision(folder, monkeypatch):
    steps, counts = (lowered_texts(monkeypatch, meta, name) for name in ("_step", "_counts"))
    meta.validate_meta(meta.train_meta(dvp_jax.load_model(folder), OneBatch(), steps=1), OneBatch())
    assert precisions(steps[0]) == precisions(counts[0]) == {("HIGHEST", "HIGHEST")}


@pytest.mark.parametrize("precision", ["exact", "HIGHEST", ""])
def test_an_unknown_precision_is_refused(folder, precision):
    message = f"precision is '{precision}'; allowed: None, default, high, highest"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dvp_jax.load_model(folder, precision=precision)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        dataclasses.replace(dvp_jax.load_model(folder), precision=precision)


def test_a_precision_does_not_outlast_the_call(folder):
    model = dvp_jax.load_model(folder, "bfloat16")
    encode(dvp_jax.load_model(folder), IDS, MASK)
    assert decode_precisions(model, method="full") == {("DEFAULT", "DEFAULT")}


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    """A SentencePiece model with a piece for each byte, as mT5 and UMT5 have it."""
    folder = tmp_path_factory.mktemp("spiece")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a dog runs", "the green house", "a bird sings", "the dog sings"] * 20),
        model_prefix=str(folder / "spiece"),
        vocab_size=300,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return folder / "spiece.model"


@pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5"])
@pytest.mark.parametrize("tokenizer_class", [None, "T5Tokenizer", "MT5Tokenizer"])
def test_spiece_model_alone_writes_rare_characters_as_bytes(
    model_type, tokenizer_class, sentencepiece_model, tmp_path
):
    shutil.copy(sentencepiece_model, tmp_path)
    fields = {"tokenizer_class": tokenizer_class} if tokenizer_class else {}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"extra_ids": 0, **fields}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    peer = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_model))
    tokenizer = load_tokenizer(tmp_path)
    tokenizer.save_pretrained(tmp_path / "saved")
    for each in (tokenizer, load_tokenizer(tmp_path / "saved")):
        for text in ("a dog ☃ sings", "日本語", "é😃 house", "Ελλάδα", "the bird"):
            assert each(text)["input_ids"] == [*peer.encode(text), peer.eos_id()]
            assert each.decode(peer.encode(text)) == text


def test_a_tokenizer_json_without_byte_fallback_stays_as_it_is(sentencepiece_model, tmp_path):
    shutil.copy(sentencepiece_model, tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0}))
    transformers.AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "saved")
    tokenizer = load_tokenizer(tmp_path / "saved")
    assert tokenizer("a ☃")["input_ids"][-2] == tokenizer.unk_token_id


def test_the_fingerprint_is_of_the_weights():
    models = [both("t5", seed=seed)[1] for seed in (0, 0, 1)]
    one, same, other = (model.fingerprint for model in models)
    assert one == same != other
