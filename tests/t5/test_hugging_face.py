"""Reading and writing checkpoints: formats, round trips, memory, damaged files."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import dvp_jax
from tests.models import VARIANTS, random_model, save, state_dict


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
    set_config(tmp_path / "orbax", d_ff=50)
    message = r"wrong shape: decoder/layers_0/feed_forward/wi \(48, 32\); config.json says \(50, 32\)"
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


def test_every_tensor_that_does_not_fit_is_listed(folder):
    def spoil(tensors):
        del tensors["decoder.final_layer_norm.weight"]
        del tensors["encoder.block.1.layer.0.SelfAttention.q.weight"]
        tensors["decoder.block.9.layer.0.SelfAttention.q.weight"] = torch.zeros(2, 2)
        tensors["shared.weight"] = torch.zeros(7, 32)

    rewrite(folder, spoil)
    with pytest.raises(ValueError) as error:
        dvp_jax.load_model(folder)
    message = str(error.value)
    assert "missing: decoder.final_layer_norm.weight (32,)" in message
    assert "missing: encoder.block.1.layer.0.SelfAttention.q.weight (32, 32)" in message
    assert "not of this model: decoder.block.9.layer.0.SelfAttention.q.weight (2, 2)" in message
    assert "wrong shape: shared.weight (7, 32); config.json says (211, 32)" in message


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


def test_a_truncated_pytorch_file_is_named(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:1000])
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
        ({"num_heads": 0}, "num_heads is 0; allowed: an integer of at least 1"),
        ({"eos_token_id": [1, 211]}, r"eos_token_id is \(1, 211\); allowed: ids from 0 to 210"),
    ],
)
def test_a_config_that_is_no_t5_is_refused(folder, fields, message):
    set_config(folder, **fields)
    with pytest.raises(ValueError, match=message):
        dvp_jax.load_model(folder)


def test_an_unknown_dtype_is_refused(folder):
    with pytest.raises(ValueError, match="dtype is 'float64'; allowed: float32, bfloat16"):
        dvp_jax.load_model(folder, dtype="float64")


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


@pytest.mark.parametrize("ending", ["safetensors", "bin"])
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
    # and one that has PyTorch's file only
    (snapshot / "model.safetensors").unlink()
    torch.save(state_dict(peer), snapshot / "pytorch_model.bin")
    assert_same_params(dvp_jax.load_model("somebody/some-t5").params, model.params)


def test_a_damaged_orbax_checkpoint_is_refused(folder, tmp_path):
    model = dvp_jax.load_model(folder)
    for name, spoil in (("metadata", "_METADATA"), ("data", "manifest.ocdbt")):
        dvp_jax.save_model(tmp_path / name, model, format="orbax")
        (tmp_path / name / "params" / spoil).unlink()
        with pytest.raises(ValueError, match="is not a complete Orbax checkpoint"):
            dvp_jax.load_model(tmp_path / name)
