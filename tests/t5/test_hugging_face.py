"""Reading and writing checkpoints: formats, round trips, memory, damaged files."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from unittest import mock

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import dvp_jax
from dvp_jax.t5.config import SHAPES, T5Config
from dvp_jax.t5.exit_classifier import ExitClassifier
from tests.launching import make_checkpoint
from tests.models import VARIANTS, both, random_model, save, state_dict


@pytest.fixture
def folder(tmp_path):
    return save(random_model("t5"), tmp_path / "checkpoint")


def rewrite(folder, change):
    """Applies `change` to the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def set_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def assert_same_params(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip_to_hugging_face_gives_identical_tensors(variant, tmp_path):
    peer = random_model(variant)
    model = dvp_jax.load_model(save(peer, tmp_path / "in"))
    dvp_jax.save_model(tmp_path / "out", model)
    back = load_file(tmp_path / "out" / "model.safetensors")
    expected = state_dict(peer)
    assert back.keys() == expected.keys()
    assert all(torch.equal(back[name], expected[name]) for name in expected)
    # and `transformers` itself reads the folder as the same model
    read = type(peer).from_pretrained(tmp_path / "out").eval()
    ids = torch.arange(2, 12)[None]
    with torch.no_grad():
        logits, expected_logits = (m(input_ids=ids, decoder_input_ids=ids).logits for m in (read, peer))
    assert torch.equal(logits, expected_logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_widened_exactly(dtype, tmp_path):
    peer = random_model("t5").to(dtype)
    model = dvp_jax.load_model(save(peer, tmp_path))
    assert model.params["shared"].dtype == np.float32
    np.testing.assert_array_equal(model.params["shared"], peer.shared.weight.detach().float().numpy())


def test_sharded_safetensors_and_pytorch_files_give_the_same_params(tmp_path):
    peer = random_model("t5.1.1")
    expected = dvp_jax.load_model(save(peer, tmp_path / "one")).params
    tensors = state_dict(peer)
    halves = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])]
    for stem, ending, write in (("model", "safetensors", save_file), ("pytorch_model", "bin", torch.save)):
        target = tmp_path / ending
        target.mkdir()
        (target / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
        weight_map = {}
        for number, half in enumerate(halves, start=1):
            name = f"{stem}-{number:05}-of-00002.{ending}"
            write(half, target / name)
            weight_map |= dict.fromkeys(half, name)
        (target / f"{stem}.{ending}.index.json").write_text(json.dumps({"weight_map": weight_map}))
        assert_same_params(dvp_jax.load_model(target).params, expected)
    target = tmp_path / "single"
    target.mkdir()
    (target / "config.json").write_text((tmp_path / "one" / "config.json").read_text())
    torch.save({name: tensor.bfloat16() for name, tensor in tensors.items()}, target / "pytorch_model.bin")
    rounded = jax.tree.map(lambda x: x.astype("bfloat16").astype("float32"), expected)
    assert_same_params(dvp_jax.load_model(target).params, rounded)


def test_tied_copies_in_a_file_make_no_second_unembedding(folder):
    def add_copies(tensors):
        for name in ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
            tensors[name] = tensors["shared.weight"].clone()

    expected = dvp_jax.load_model(folder)
    rewrite(folder, add_copies)
    model = dvp_jax.load_model(folder)
    assert model.config == expected.config and model.config.tie_word_embeddings
    assert_same_params(model.params, expected.params)


def test_the_unembedding_is_untied_where_the_tensors_differ_whatever_the_config_says(folder):
    set_config(folder, tie_word_embeddings=True)
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": tensors["shared.weight"] * 2}))
    model = dvp_jax.load_model(folder)
    assert not model.config.tie_word_embeddings
    np.testing.assert_array_equal(model.params["lm_head"], 2 * model.params["shared"])


@pytest.mark.parametrize(
    ("model_type", "fields", "scaled"),
    [
        ("t5", {}, True),
        ("t5", {"tie_word_embeddings": False}, False),
        ("t5", {"tie_word_embeddings": True, "scale_decoder_outputs": False}, False),
        ("mt5", {"tie_word_embeddings": True}, False),
        ("mt5", {"scale_decoder_outputs": True}, False),
        ("umt5", {"tie_word_embeddings": True}, True),
        ("umt5", {"tie_word_embeddings": False}, False),
    ],
)
def test_what_decides_the_scale_of_the_logits(model_type, fields, scaled):
    shape = {"vocab_size": 10, "d_model": 16, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 4}
    config = dvp_jax.T5Config.from_hugging_face({"model_type": model_type, **shape, **fields})
    assert config.logit_scale == (0.25 if scaled else 1.0)


def test_weights_beyond_one_files_limit_are_spread_as_transformers_reads_them(folder, tmp_path, monkeypatch):
    limit = 60_000
    monkeypatch.setattr("dvp_jax.t5.hugging_face.MAX_FILE_BYTES", limit)
    model = dvp_jax.load_model(folder)
    dvp_jax.save_model(tmp_path / "spread", model)
    files = sorted((tmp_path / "spread").glob("*.safetensors"))
    assert len(files) > 2 and not (tmp_path / "spread" / "model.safetensors").exists()
    assert [file.name for file in files] == [
        f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))
    ]
    assert all(sum(x.nbytes for x in load_file(file).values()) <= limit for file in files)
    assert_same_params(dvp_jax.load_model(tmp_path / "spread").params, model.params)
    peers = [transformers.T5ForConditionalGeneration.from_pretrained(x) for x in (tmp_path / "spread", folder)]
    tensors, expected = (peer.state_dict() for peer in peers)
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_orbax_and_back_gives_identical_params(folder, tmp_path, dtype):
    model = dvp_jax.load_model(folder, dtype)
    dvp_jax.save_model(tmp_path / "orbax", model, format="orbax")
    back = dvp_jax.load_model(tmp_path / "orbax", dtype)
    assert back.config == model.config
    assert_same_params(back.params, model.params)


def test_an_orbax_checkpoint_that_does_not_fit_its_config_is_refused(folder, tmp_path):
    dvp_jax.save_model(tmp_path / "orbax", dvp_jax.load_model(folder), format="orbax")
    for fields, message in (
        ({"d_ff": 50}, "d_ff is 50; allowed: 48, as decoder/layers_0/feed_forward/wi"),
        ({"d_ff": 48, "num_decoder_layers": 1000}, "num_decoder_layers is 1000; allowed: 4, the decoder layers"),
    ):
        set_config(tmp_path / "orbax", **fields)
        with pytest.raises(ValueError, match=message):
            dvp_jax.load_model(tmp_path / "orbax")


def test_saving_over_a_checkpoint_is_refused_and_a_failed_save_leaves_nothing(folder, tmp_path, monkeypatch):
    model = dvp_jax.load_model(folder)
    with pytest.raises(FileExistsError, match="holds a checkpoint already"):
        dvp_jax.save_model(folder, model)
    with pytest.raises(ValueError, match="format is 'msgpack'; allowed: huggingface, orbax"):
        dvp_jax.save_model(tmp_path / "x", model, format="msgpack")

    def disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dvp_jax.t5.load.write_checkpoint", disk_full)
    with pytest.raises(OSError, match="No space"):
        dvp_jax.save_model(tmp_path / "x", model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint"]


def test_tensors_that_do_not_fit_are_said_in_one_line(folder):
    def spoil(tensors):
        del tensors["decoder.final_layer_norm.weight"]
        del tensors["encoder.block.1.layer.0.SelfAttention.q.weight"]
        tensors["encoder.block.0.layer.0.SelfAttention.q.bias"] = torch.zeros(32)
        tensors["encoder.final_layer_norm.weight"] = torch.zeros(7)

    rewrite(folder, spoil)
    with pytest.raises(ValueError) as error:
        dvp_jax.load_model(folder)
    message = str(error.value)
    assert re.search(r"; missing: (decoder\.final|encoder\.block\.1)[\w.]+ \([\d, ]+\) and 1 more; not", message)
    assert "; not of this model: encoder.block.0.layer.0.SelfAttention.q.bias (32,);" in message
    assert "; wrong shape: encoder.final_layer_norm.weight (7,), config.json says (32,)" in message
    assert "\n" not in message


def test_weights_of_an_encoder_alone_are_refused(folder):
    rewrite(folder, lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith("decoder")])
    with pytest.raises(
        ValueError, match=f"^{folder}: the weights have no T5 decoder; allowed: those of an encoder"
    ):
        dvp_jax.load_model(folder)


def test_nan_and_infinite_weights_are_named(folder):
    def spoil(tensors):
        tensors["shared.weight"][3, 4] = float("nan")
        tensors["decoder.block.2.layer.2.DenseReluDense.wo.weight"][0, 0] = float("inf")

    rewrite(folder, spoil)
    with pytest.raises(ValueError, match=r"NaN or infinity in .*shared\.weight") as error:
        dvp_jax.load_model(folder)
    assert "decoder.block.2.layer.2.DenseReluDense.wo.weight" in str(error.value)


@pytest.mark.parametrize("keep", [0, 5, 1000])
def test_a_truncated_safetensors_file_is_named(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        dvp_jax.load_model(folder)


@pytest.mark.parametrize("keep", [0, 1000])
def test_a_truncated_pytorch_file_is_named(folder, keep):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is truncated"):
        dvp_jax.load_model(folder)


def test_folders_that_are_no_checkpoint_are_refused(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub repository"):
        dvp_jax.load_model(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub repository"):
        dvp_jax.load_model("nobody/no-such-model")
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    with pytest.raises(FileNotFoundError, match=r"has no weights; looked for model\.safetensors"):
        dvp_jax.load_model(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        dvp_jax.load_model(folder)


def test_an_index_that_names_a_missing_shard_is_refused(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"shared.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"names model-00001-of-00002\.safetensors, not in the folder"):
        dvp_jax.load_model(folder)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bart"}, "model_type is 'bart'; allowed: t5, mt5, umt5"),
        ({"feed_forward_proj": "gated-tanh"}, "feed_forward_proj is 'gated-tanh'; allowed: one of relu"),
        ({"feed_forward_proj": 1}, "feed_forward_proj is 1; allowed: one of relu"),
        ({"dense_act_fn": "gelu"}, "dense_act_fn is 'gelu'; allowed with feed_forward_proj 'relu': 'relu'"),
        ({"is_gated_act": True}, "is_gated_act is True; allowed with feed_forward_proj 'relu': False"),
        ({"num_heads": 0}, "num_heads is 0; allowed: an integer from 1 to 2147483647"),
        ({"d_model": 32.0}, "d_model is 32.0; allowed: an integer from 1 to"),
        ({"d_model": None}, "missing d_model"),
        ({"vocab_size": 10**30}, f"vocab_size is {10**30}; allowed: an integer from 1 to 2147483647"),
        ({"relative_attention_num_buckets": 2}, "num_buckets is 2; allowed: an integer from 4 to"),
        ({"relative_attention_num_buckets": "32"}, "num_buckets is '32'; allowed: an integer from 4 to"),
        ({"relative_attention_max_distance": 16}, "max_distance is 16; allowed: an integer from 17 to"),
        ({"layer_norm_epsilon": "1e-6"}, "layer_norm_epsilon is '1e-6'; allowed: a number from 0 to 1"),
        ({"dropout_rate": 1.5}, "dropout_rate is 1.5; allowed: a number from 0 to 1"),
        ({"initializer_factor": float("nan")}, "initializer_factor is nan; allowed: a number from 0 to 1000"),
        ({"scale_decoder_outputs": "no"}, "scale_decoder_outputs is 'no'; allowed: true, false"),
        ({"eos_token_id": [1, 211]}, "eos_token_id is (1, 211); allowed: ids from 0 to 210"),
        ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'; allowed: ids from 0 to 210"),
        ({"decoder_start_token_id": 500}, "decoder_start_token_id is 500; allowed: ids from 0 to 210"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id is -1; allowed: ids from 0 to 210"),
        ({"decoder_start_token_id": True}, "decoder_start_token_id is True; allowed: ids from 0 to 210"),
        ({"pad_token_id": "<pad>"}, "pad_token_id is '<pad>'; allowed: ids from 0 to 210"),
        (
            {"quantization_config": {"load_in_8bit": True}},
            "quantization_config is {'load_in_8bit': True}; allowed: a",
        ),
        ({"num_layers": 1000}, "num_layers is 1000; allowed: 2, the encoder layers of the weights"),
        (
            {"num_decoder_layers": 1000},
            "num_decoder_layers is 1000; allowed: 4, the decoder layers of the weights",
        ),
        ({"num_decoder_layers": None}, "num_decoder_layers is 2; allowed: 4, the decoder layers of the weights"),
        ({"vocab_size": 300}, "vocab_size is 300; allowed: 211, as shared.weight"),
        ({"d_model": 24}, "d_model is 24; allowed: 32, as shared.weight"),
        ({"d_ff": 64}, "d_ff is 64; allowed: 48, as decoder.block.0.layer.2.DenseReluDense.wi.weight"),
        ({"num_heads": 8}, "num_heads is 8; allowed: 4, as decoder.block.0.layer.0.SelfAttention.relative_"),
        ({"d_kv": 16}, "d_kv is 16; allowed: 8, as decoder.block.0.layer.0.SelfAttention.q.weight"),
        (
            {"relative_attention_num_buckets": 16},
            "num_buckets is 16; allowed: 32, as decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        ),
        (
            {"feed_forward_proj": "gated-relu", "is_gated_act": True},
            "missing: decoder.block.0.layer.2.DenseReluDense.wi_0.weight (48, 32) and 11 more; not of this ",
        ),
    ],
)
def test_a_config_with_an_impossible_value_is_refused_by_file_and_field(folder, fields, message):
    set_config(folder, **fields)
    with pytest.raises(ValueError) as error:
        dvp_jax.load_model(folder)
    assert "config.json" in str(error.value) and message in str(error.value)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_an_mt5_that_scales_its_output_is_refused_as_it_could_not_be_loaded_so():
    with pytest.raises(ValueError, match=r"^scale_decoder_outputs is True; allowed with model_type 'mt5': False$"):
        T5Config(model_type="mt5")
    assert not T5Config(model_type="mt5", scale_decoder_outputs=False).scale_decoder_outputs


@pytest.mark.parametrize("model_type", ["t5", "mt5", "umt5"])
def test_what_a_config_does_not_say_is_as_in_transformers(model_type):
    config_class = {"t5": "T5Config", "mt5": "MT5Config", "umt5": "UMT5Config"}[model_type]
    defaults = getattr(transformers, config_class)()
    sizes = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")  # which must be said
    config = T5Config.from_hugging_face(
        {"model_type": model_type} | {name: getattr(defaults, name) for name in sizes}
    )
    for name in set(vars(config)) - {"vocab_padding", "decoder_start_token_id", "scale_decoder_outputs"}:
        assert getattr(config, name) == getattr(defaults, name), name
    if model_type == "t5":
        assert config == T5Config()


@pytest.mark.parametrize(
    ("name", "d_model", "d_ff", "d_kv", "num_heads", "num_layers", "millions"),
    [  # config.json of the published checkpoints, and their sizes
        ("t5-small", 512, 2048, 64, 8, 6, 60.5),
        ("t5-base", 768, 3072, 64, 12, 12, 222.9),
        ("t5-large", 1024, 4096, 64, 16, 24, 737.7),
        ("t5-3b", 1024, 16384, 128, 32, 24, 2851.6),
        ("t5-11b", 1024, 65536, 128, 128, 24, 11307.3),
        ("flan-t5-xxl", 4096, 10240, 64, 64, 24, 11135.3),
        ("mt5-small", 512, 1024, 64, 6, 8, 300.2),
        ("mt5-base", 768, 2048, 64, 12, 12, 582.4),
    ],
)
def test_named_shapes_are_the_published_ones(name, d_model, d_ff, d_kv, num_heads, num_layers, millions):
    is_untied, is_mt5 = not name.startswith("t5"), name.startswith("mt5")
    vocab_size = 250112 if is_mt5 else 32128
    expected = {"d_model": d_model, "d_ff": d_ff, "d_kv": d_kv, "num_heads": num_heads, "vocab_size": vocab_size}
    expected |= {"num_layers": num_layers, "num_decoder_layers": num_layers}
    expected |= {
        "model_type": "mt5" if is_mt5 else "t5",
        "feed_forward_proj": "gated-gelu" if is_untied else "relu",
    }
    expected |= dict.fromkeys(("tie_word_embeddings", "scale_decoder_outputs"), not is_untied)
    config = vars(SHAPES[name])
    assert {field: config[field] for field in expected} == expected
    kind = "MT5" if is_mt5 else "T5"
    peer_config = getattr(transformers, f"{kind}Config")(**SHAPES[name].to_hugging_face())
    with torch.device("meta"):  # transformers counts the weights of that shape; it ties what T5 1.0 alone ties
        peer = getattr(transformers, f"{kind}ForConditionalGeneration")(peer_config)
    own_unembedding = vocab_size * d_model if is_untied else 0
    assert round((peer.num_parameters() + own_unembedding) / 1e6, 1) == millions


IDS = ("decoder_start_token_id", "eos_token_id", "pad_token_id")


@pytest.mark.parametrize(
    ("config", "generation", "formats"),
    [
        ({"decoder_start_token_id": 5, "eos_token_id": [7, 30], "pad_token_id": 3}, None, ["huggingface"]),
        ({"decoder_start_token_id": None, "bos_token_id": 9, "eos_token_id": None}, None, ["huggingface"]),
        ({}, {"decoder_start_token_id": 5, "eos_token_id": [7, 30], "pad_token_id": 3}, ["huggingface"]),
        ({}, {"decoder_start_token_id": 5, "pad_token_id": 0, "num_beams": 4}, ["orbax", "huggingface"]),
        ({"eos_token_id": 9}, {"bos_token_id": 5, "pad_token_id": 0}, ["huggingface"]),
        ({"num_beams": 4}, {"bos_token_id": 0, "pad_token_id": 0, "min_length": 3}, ["huggingface"]),
        (  # as of XLSum's mT5, and every other field that a config.json has had
            {"max_length": 84, "no_repeat_ngram_size": 2, "num_beams": 4, "length_penalty": 0.6, "do_sample": True}
            | {"min_length": 3, "temperature": 0.5, "top_k": 9, "top_p": 0.5, "typical_p": 0.5}
            | {"num_beam_groups": 2, "diversity_penalty": 0.1, "num_return_sequences": 2, "early_stopping": True}
            | {"repetition_penalty": 1.5, "encoder_no_repeat_ngram_size": 3, "bad_words_ids": [[5]]}
            | {"suppress_tokens": [6], "begin_suppress_tokens": [7], "forced_bos_token_id": 8}
            | {"forced_eos_token_id": 1, "exponential_decay_length_penalty": [5, 1.1]}
            | {"max_new_tokens": 9, "min_new_tokens": 2, "remove_invalid_values": True},
            None,
            ["orbax", "huggingface"],
        ),
    ],
)
def test_what_transformers_generates_with_is_read_and_kept(folder, tmp_path, config, generation, formats):
    set_config(folder, **config)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    model = dvp_jax.load_model(folder)
    for step in formats:
        dvp_jax.save_model(tmp_path / step, model, format=step)
        model = dvp_jax.load_model(tmp_path / step)
    read = [transformers.T5ForConditionalGeneration.from_pretrained(x) for x in (folder, tmp_path / "huggingface")]
    before, after = (peer.generation_config.to_dict() for peer in read)
    expected = [before[name] for name in IDS]
    expected[0] = before["bos_token_id"] if expected[0] is None else expected[0]  # as `generate` takes it
    assert [after[name] for name in IDS] == list(model.config.token_ids().values()) == expected
    same = [n for n in before if not re.match("(bos|eos|pad|decoder_start)_|output_|use_cache|_|transf", n)]
    assert {name: after[name] for name in same} == {name: before[name] for name in same}


@pytest.mark.parametrize(("ids", "value"), [({"eos_token_id": 211}, 211), ({"decoder_start_token_id": -1}, -1)])
def test_impossible_ids_of_generation_config_are_refused(folder, ids, value):
    (folder / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 0, **ids}))
    message = rf"generation_config\.json: {next(iter(ids))} is {value}; allowed: ids from 0 to 210"
    with pytest.raises(ValueError, match=message):
        dvp_jax.load_model(folder)


def test_a_pad_token_without_an_embedding_is_allowed_for_it_is_never_read(folder):
    set_config(folder, pad_token_id=211)
    assert 0 <= dvp_jax.load_model(folder).config.pad_token_id < 211


NAMES = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


@pytest.mark.parametrize("stored", ["-a--", "--a-", "---a", "--ab", "-a-b", "aa-b", "aaaa", "-aa-"])
def test_the_embedding_is_found_under_each_of_its_names_as_by_hugging_face(folder, stored):
    def rename(tensors):
        values = {"a": tensors.pop("shared.weight")}
        values["b"] = 2 * values["a"]
        tensors.update({name: values[x].clone() for name, x in zip(NAMES, stored, strict=True) if x != "-"})

    rewrite(folder, rename)
    model = dvp_jax.load_model(folder)
    peer = transformers.T5ForConditionalGeneration.from_pretrained(folder)
    np.testing.assert_array_equal(model.params["shared"], peer.encoder.embed_tokens.weight.detach())
    unembedding = model.params["shared" if model.config.tie_word_embeddings else "lm_head"]
    np.testing.assert_array_equal(unembedding, peer.lm_head.weight.detach())
    assert model.config.tie_word_embeddings == ("b" not in stored)


@pytest.mark.parametrize("name", NAMES[1:3])
def test_an_embedding_of_one_stack_that_differs_is_refused(folder, name):
    rewrite(folder, lambda tensors: tensors.update({name: tensors["shared.weight"] * 2}))
    with pytest.raises(ValueError, match=f"{name} differs from shared.weight; allowed: one embedding"):
        dvp_jax.load_model(folder)


def write_bin(folder, content):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.float8_e4m3fn])
def test_weights_of_another_dtype_are_refused(folder, dtype, ending):
    def cast(tensors):
        for name in ("shared.weight", "decoder.final_layer_norm.weight"):
            tensors[name] = tensors[name].to(dtype)

    rewrite(folder, cast)
    if ending == "bin":
        write_bin(folder, load_file(folder / "model.safetensors"))
    message = r"weight is \w+ and 1 more tensors are such; allowed: float64, float32, float16, bfloat16"
    with pytest.raises(ValueError, match=message):
        dvp_jax.load_model(folder)


def test_parameters_in_a_pytorch_file_load(folder):
    expected = dvp_jax.load_model(folder)
    write_bin(folder, {n: torch.nn.Parameter(x) for n, x in load_file(folder / "model.safetensors").items()})
    assert_same_params(dvp_jax.load_model(folder).params, expected.params)


@pytest.mark.parametrize("change", [torch.Tensor.to_sparse, lambda tensor: tensor.to("meta"), torch.Tensor.tolist])
def test_entries_of_a_pytorch_file_without_values_are_refused(folder, change):
    tensors = load_file(folder / "model.safetensors")
    write_bin(folder, tensors | {"shared.weight": change(tensors["shared.weight"])})
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin: shared\.weight; allowed: tensors with their values"
    ):
        dvp_jax.load_model(folder)


def whole_model(folder):
    write_bin(folder, random_model("t5"))


def lora(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "google-t5/t5-small"}))


def wrapped(change):
    def rename(folder):
        tensors = {change(name): x for name, x in load_file(folder / "model.safetensors").items()}
        save_file(tensors, folder / "model.safetensors")

    return rename


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (whole_model, "pytorch_model.bin holds "),
        (lora, "holds an adapter (LoRA) of google-t5/t5-small; allowed: a whole model"),
        (wrapped(lambda name: f"module.{name}"), "names of tensors contain module, as module."),
        (wrapped(lambda name: f"_orig_mod.{name}"), "names of tensors contain _orig_mod, as _orig_mod."),
        (wrapped(lambda name: name.replace(".block", "._orig_mod.block")), "contain _orig_mod, as "),
        (wrapped(lambda name: f"base_model.model.{name[:-7]}.lora_A.weight"), "contain base_model, model, lora_A"),
    ],
)
def test_other_things_than_a_models_weights_are_said_in_one_line(folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError) as error:
        dvp_jax.load_model(folder)
    assert message in str(error.value) and "\n" not in str(error.value)


def write_shards(folder, weight_map, **shards):
    for name, tensors in shards.items():
        save_file(tensors, folder / f"{name}.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_the_index_decides_where_a_tensor_in_two_shards_is_read(folder):
    expected = dvp_jax.load_model(folder)
    tensors = load_file(folder / "model.safetensors")
    other = {"shared.weight": tensors["shared.weight"] * 2}
    write_shards(folder, dict.fromkeys(tensors, "a.safetensors"), a=tensors, b=other)
    assert_same_params(dvp_jax.load_model(folder).params, expected.params)
    index = {"weight_map": dict.fromkeys(tensors, "a.safetensors") | {"shared.weight": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model = dvp_jax.load_model(folder)
    np.testing.assert_array_equal(model.params["shared"], other["shared.weight"])
    index["weight_map"]["lm_head.weight"] = "b.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"names lm_head\.weight in b\.safetensors, which does not have it"):
        dvp_jax.load_model(folder)


def test_an_index_that_leads_out_of_the_folder_is_refused(folder, tmp_path):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, tmp_path / "outside.safetensors")
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors")):
        shutil.copy(tmp_path / "outside.safetensors", folder / "model.safetensors")
        write_shards(folder, dict.fromkeys(tensors, name))
        with pytest.raises(ValueError, match=f"names {name}; allowed: files in the folder"):
            dvp_jax.load_model(folder)


def test_weights_that_overflow_bfloat16_are_refused_by_tensor(folder):
    def grow(tensors):
        tensors["decoder.final_layer_norm.weight"][3] = torch.finfo(torch.float32).max

    rewrite(folder, grow)
    dvp_jax.load_model(folder)
    with pytest.raises(ValueError, match=r"NaN or infinity in decoder\.final_layer_norm\.weight, as bfloat16"):
        dvp_jax.load_model(folder, "bfloat16")


def test_an_exit_classifier_with_nan_is_refused(folder, tmp_path):
    model = dvp_jax.load_model(folder)
    model.params["meta"] = ExitClassifier(np.full(32, np.nan, np.float32), np.float32(0.0))
    dvp_jax.save_model(tmp_path / "meta", model)
    with pytest.raises(ValueError, match=r"meta_classifier\.safetensors: NaN or infinity in weight"):
        dvp_jax.load_model(tmp_path / "meta")


T5_TOKENIZER = '{"tokenizer_class": "T5Tokenizer"}'
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 2422095\n"
SENTENCEPIECE = b"\n\x0e\n\x05<pad>\x15\x00\x00\x00\x00\x18\x03"  # one piece, and nothing after it


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer.json": None}, "the tokenizer of tokenizer_config.json cannot be read: "),
        ({"tokenizer.json": None, "tokenizer_config.json": T5_TOKENIZER}, "has no vocabulary of its T5Tokenizer"),
        ({"tokenizer.json": POINTER}, "tokenizer.json is a pointer of git-lfs; allowed: the file itself"),
        (
            {"tokenizer.json": '{"version": "1.0", "model": {"voc'},
            "tokenizer.json is not JSON: Unterminated string",
        ),
        ({"tokenizer_config.json": POINTER}, "tokenizer_config.json is a pointer of git-lfs"),
        ({"tokenizer.json": None, "spiece.model": POINTER.encode()}, "spiece.model is a pointer of git-lfs"),
        (
            {"tokenizer.json": None, "spiece.model": SENTENCEPIECE},
            "spiece.model is truncated or is not a Sentence",
        ),
        ({"tokenizer.json": None, "spiece.model": SENTENCEPIECE[:9]}, "spiece.model is truncated or is not a Sen"),
        (
            {"tokenizer.json": '{"version": "1.0"}'},
            "the tokenizer of tokenizer.json, tokenizer_config.json cannot be",
        ),
        ({"generation_config.json": POINTER}, "generation_config.json is a pointer of git-lfs"),
        ({"config.json": POINTER}, "config.json is a pointer of git-lfs"),
    ],
)
def test_small_files_that_are_not_whole_are_named_before_the_weights_are_read(
    checkpoint, tmp_path, files, message
):
    shutil.copytree(checkpoint.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_text(POINTER)
    for name, content in files.items():
        if content is None:
            (tmp_path / name).unlink()
        else:
            (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as error:
        dvp_jax.load_model(tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_weights_that_are_a_pointer_are_named(folder):
    (folder / "model.safetensors").write_text(POINTER)
    with pytest.raises(ValueError, match=r"model\.safetensors is a pointer of git-lfs"):
        dvp_jax.load_model(folder)


def test_a_tokenizer_with_more_ids_than_the_model_embeds_is_refused(tmp_path):
    folder = make_checkpoint(tmp_path).folder
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<one>", "<two>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match="the tokenizer has 602 ids; allowed: at most 600, as the embedding"):
        dvp_jax.load_model(folder)


def test_a_tokenizer_of_bytes_needs_no_vocabulary(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}))
    set_config(folder, vocab_size=259)
    rewrite(folder, lambda tensors: tensors.update({"shared.weight": torch.zeros(259, 32)}))
    assert dvp_jax.load_model(folder).tokenizer("é")["input_ids"] == [198, 172, 1]  # UTF-8, plus 3 special ids


@pytest.mark.parametrize(
    "name",
    [
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "tokenizer.model",
        "sentencepiece.bpe.model",
        "spm.model",
        "added_tokens.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "meta_classifier.safetensors",
    ],
)
def test_the_hub_gives_whatever_files_a_tokenizer_has(folder, name, monkeypatch):
    import huggingface_hub

    fetched = set()

    def snapshot_download(repository, allow_patterns):
        offered = [name, "config.json", "model.safetensors", "tf_model.h5", "README.md", "model.fp16.safetensors"]
        fetched.update(huggingface_hub.utils.filter_repo_objects(offered, allow_patterns=allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    dvp_jax.load_model("somebody/some-t5")
    assert fetched == {name, "config.json", "model.safetensors"}


@pytest.mark.parametrize("error", [RuntimeError("proxy\n\n refused"), OSError(28, "No space"), KeyError("x")])
def test_what_keeps_the_hub_from_being_read_is_said_in_one_line(error, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", mock.Mock(side_effect=error))
    words = " ".join(str(error).split())
    message = f"somebody/some-t5 is neither a folder nor a hub repository that can be reached: {words}"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        dvp_jax.load_model("somebody/some-t5")


def test_an_unknown_dtype_is_refused(folder):
    with pytest.raises(ValueError, match="dtype is 'float64'; allowed: float32, bfloat16"):
        dvp_jax.load_model(folder, dtype="float64")


def test_all_files_of_a_checkpoint_may_be_read_by_the_same_users(tmp_path):
    model = both("t5", 1)[1]
    meta = ExitClassifier(np.zeros(model.config.d_model, np.float32), np.zeros((), np.float32))
    dvp_jax.save_model(tmp_path / "m", dataclasses.replace(model, params={**model.params, "meta": meta}))
    (tmp_path / "other").touch()
    modes = {path.name: path.stat().st_mode for path in (*(tmp_path / "m").iterdir(), tmp_path / "other")}
    assert len(modes) >= 4 and set(modes.values()) == {modes["other"]}


def test_a_folder_saved_by_transformers_loads(tmp_path):
    peer = random_model("t5")
    peer.save_pretrained(tmp_path)
    assert transformers.__version__.startswith("5.")
    model = dvp_jax.load_model(tmp_path)
    np.testing.assert_array_equal(model.params["shared"], peer.shared.weight.detach().numpy())


_MEMORY = """
import re, sys
import dvp_jax, jax.numpy as jnp, torch

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

jnp.zeros(3).block_until_ready()
before = peak()
model = dvp_jax.load_model(sys.argv[1])
loaded = peak()
dvp_jax.save_model(sys.argv[2], model)
print(loaded - before, peak() - before)
"""


@pytest.mark.parametrize("ending", ["safetensors", pytest.param("bin", marks=pytest.mark.slow)])
def test_conversion_needs_at_most_a_third_more_memory_than_the_checkpoint(tmp_path, ending):
    # 280 MB in tensors of at most 8 MB: large beside what the interpreter itself allocates meanwhile.
    shape = {"vocab_size": 2000, "d_model": 1024, "d_kv": 64, "num_heads": 16, "d_ff": 2048}
    peer = random_model("t5", **shape, num_decoder_layers=5)
    tensors = state_dict(peer)
    size = sum(tensor.nbytes for tensor in tensors.values())
    source = save(peer, tmp_path / "in")
    if ending == "bin":
        (source / "model.safetensors").unlink()
        torch.save(tensors, source / "pytorch_model.bin")
    command = [sys.executable, "-c", _MEMORY, str(source), str(tmp_path / "out")]
    # Without this the C library's allocator keeps some of the freed memory, how much varies by chance.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}
    run = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    loading, saving = (int(figure) / size for figure in run.stdout.split())
    assert 0.9 < loading <= 1.3 and saving <= 1.3, f"loading took {loading:.2f}x, saving {saving:.2f}x"


def test_pytorch_is_not_imported_for_safetensors(folder):
    code = (
        "import sys, numpy as np, dvp_jax, dvp_jax.evaluate.evaluation, dvp_jax.data, dvp_jax.evaluate.check\n"
        f"model = dvp_jax.load_model({str(folder)!r})\n"
        "ids = np.array([[5, 6, 7]])\n"
        "dvp_jax.generate(model, ids, np.ones_like(ids), dvp_jax.DecodeConfig(max_new_tokens=2))\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_hub_repository_loads_from_the_local_cache(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--somebody--some-t5"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    peer = random_model("t5")
    snapshot = save(peer, repository / "snapshots" / ("0" * 40))
    model = dvp_jax.load_model("somebody/some-t5")
    np.testing.assert_array_equal(model.params["shared"], peer.shared.weight.detach().numpy())
    # and one that has PyTorch's file only, beside a variant
    (snapshot / "model.safetensors").rename(snapshot / "model.fp16.safetensors")
    torch.save(state_dict(peer), snapshot / "pytorch_model.bin")
    assert_same_params(dvp_jax.load_model("somebody/some-t5").params, model.params)


def test_a_damaged_orbax_checkpoint_is_refused(folder, tmp_path):
    model = dvp_jax.load_model(folder)
    for name, spoil in (
        ("metadata", "_METADATA"),
        ("manifest", "manifest.ocdbt"),
        ("data", "ocdbt.process_0/d/*"),
    ):
        dvp_jax.save_model(tmp_path / name, model, format="orbax")
        for path in (tmp_path / name / "params").glob(spoil):
            path.unlink()
        with pytest.raises(ValueError, match=rf"{spoil[:-1]}\w+ is damaged or missing; allowed: the file"):
            dvp_jax.load_model(tmp_path / name)
        (tmp_path / name / "SHA256SUMS").unlink()
        message = f"^{tmp_path / name / 'params'} is not a complete Orbax checkpoint: "
        with pytest.raises(ValueError, match=message) as error:
            dvp_jax.load_model(tmp_path / name)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("format", ["huggingface", "orbax"])
def test_weights_with_a_flipped_byte_are_refused_by_name(folder, tmp_path, format):
    saved = tmp_path / "saved"
    dvp_jax.save_model(saved, dvp_jax.load_model(folder), format=format)
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=saved, check=True, capture_output=True)
    sums = (saved / "SHA256SUMS").read_text()
    (saved / "SHA256SUMS").write_text(sums.replace("  ", " *"))  # as `sha256sum --binary` writes it
    dvp_jax.load_model(saved)
    weights = [path for path in saved.rglob("*") if path.suffix == ".safetensors" or "params" in path.parts]
    path = max(weights, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{path} is damaged or missing; allowed: the file whose checksum is in"):
        dvp_jax.load_model(saved)
