"""Several devices: the same tokens and exits as on one, weights straight into shards, training, and bad meshes."""

import math
import pickle
import re

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import dvp_jax
from dvp_jax.bench.collectives import least, most, per_token
from dvp_jax.runs import processes
from dvp_jax.t5.sharding import make_mesh, round_up_rows
from dvp_jax.train.trainer import TrainConfig, check_batch
from tests.launching import start
from tests.models import random_model, save
from tests.on_meshes import MAIN, MESHES, PROMPTS, RUN, SETTINGS, source
from tests.processes import begin, end
from tests.reference import reference_decode
from tests.train.helpers import tiny_model

TIE = 1e-3  # as in tests/decode/test_reference.py
CLASSIFIER = np.random.default_rng(0).normal(size=32).astype(np.float32), np.float32(0.3)
CASES = [(shape, name) for shape, names in RUN.items() for name in names]


def run(folder, path, *arguments):
    done = start("-m", "tests.on_meshes", folder, path, *arguments)
    assert done.returncode == 0, done.stderr
    return pickle.loads(path.read_bytes())


@pytest.fixture(scope="module")
def peer():
    return random_model("t5", 0, 4.0, 4.0, num_heads=8, d_kv=4, num_layers=1, num_decoder_layers=3)


@pytest.fixture(scope="module")
def folder(peer, tmp_path_factory):
    made = save(peer, tmp_path_factory.mktemp("on_meshes") / "model")
    save_file({"weight": CLASSIFIER[0], "bias": np.asarray(CLASSIFIER[1])}, made / "meta_classifier.safetensors")
    return made


@pytest.fixture(scope="module")
def results(folder):
    """What tests/on_meshes.py found on 8 virtual devices."""
    return run(folder, folder.parent / "results")


def assert_equal_to_reference(peer, out, name):
    fields = {key: value for key, value in SETTINGS[name].items() if key != "branch_every"}
    classifier = torch.from_numpy(CLASSIFIER[0]), float(CLASSIFIER[1])
    for row, prompt in enumerate(PROMPTS):
        expected = reference_decode(peer, prompt, **fields, classifier=classifier)
        assert expected.margin > TIE, "else a decision may fall either way"
        length = len(expected.tokens)
        assert out["lengths"][row] == length
        assert out["tokens"][row, :length].tolist() == expected.tokens
        assert out["exit_layers"][row, :length].tolist() == expected.exit_layers
        np.testing.assert_allclose(out["confidences"][row, :length], expected.confidences, atol=TIE)


@pytest.mark.parametrize(("shape", "name"), CASES)
def test_tokens_and_exits_on_8_devices_equal_the_reference(peer, results, shape, name):
    assert_equal_to_reference(peer, results["decoded"][shape][name], name)


def test_an_engine_on_a_mesh_gives_the_same(results):
    batch = results["decoded"][MAIN]["dvp"]  # equals the reference
    for row, (tokens, exits) in enumerate(results["engine"]):
        length = batch["lengths"][row]
        assert (tokens, exits) == (
            batch["tokens"][row, :length].tolist(),
            batch["exit_layers"][row, :length].tolist(),
        )
    assert len(results["engine"]) == len(PROMPTS)


@pytest.mark.slow
def test_every_method_on_every_mesh_equals_the_reference(peer, folder):
    everything = run(folder, folder.parent / "all", "all")["decoded"]
    for shape in MESHES:
        for name in SETTINGS:
            assert_equal_to_reference(peer, everything[shape][name], name)


@torch.no_grad()
def test_logits_candidates_and_ranks_on_a_mesh_equal_pytorch(peer, results):
    ids, mask = (torch.from_numpy(array) for array in source())
    tokens = torch.tensor(PROMPTS[1:3])
    start = torch.zeros((len(ids), 1), dtype=torch.long)

    def logits(rows, decoder_ids):
        return peer(input_ids=ids[:rows], attention_mask=mask[:rows], decoder_input_ids=decoder_ids).logits

    np.testing.assert_allclose(results["analysed"]["logits"], logits(len(ids), start), atol=TIE)
    last = logits(2, torch.cat([start[:2], tokens[:, :-1]], dim=1))
    assert results["analysed"]["candidates"][..., -1].tolist() == last.argmax(dim=-1).tolist()
    likelier = last > last.gather(2, tokens[..., None])
    assert results["analysed"]["ranks"][..., -1].tolist() == likelier.sum(dim=-1).tolist()


def test_only_the_kept_rows_of_the_unembedding_travel(results):
    sizes = [
        math.prod(int(n) for n in shape.split(",") if n)
        for line in results["hlo"].splitlines()
        if (made := re.search(r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute)\(", line))
        for shape in re.findall(r"\w+\[([\d,]*)\]", made[1])
    ]
    rows, kept, d_model = 8 // MAIN[0], SETTINGS["dvp"]["prune_size"], 32
    assert max(sizes) == rows * kept * d_model  # W has 211 * d_model; the logits rows * 211
    assert sum(size >= rows * 211 for size in sizes) == 1


def test_collectives_of_a_token_are_those_of_the_formulas(results):
    rows, parts, kept, d_model, layers = 4, MAIN[1], SETTINGS["dvp"]["prune_size"], 32, 3
    sent = per_token(results["hlo"], most)
    # Values and ids: the kept tokens at depth 1, and the best two of the vocabulary there and at the last depth.
    assert sent.count["all-gather"] == 6
    assert sent.bytes["all-gather"] == 4 * rows * parts * (2 * kept + 2 * 2 + 2 * 2)
    # The embedding, 3 products a layer, the kept rows and two sums of a softmax. Then flags, a byte each.
    exact = 4 * rows * (d_model * (1 + 3 * layers + kept) + 2)
    assert exact <= sent.bytes["all-reduce"] <= exact + 8
    # A token that exits at depth 1 runs no deeper layer, and is not read at the last depth.
    early = per_token(results["hlo"], least)
    assert early.bytes["all-gather"] == 4 * rows * parts * (2 * kept + 2 * 2)
    exact = 4 * rows * (d_model * (1 + 3 + kept) + 1)
    assert exact <= early.bytes["all-reduce"] <= exact + 8


def test_each_part_of_a_tensor_is_read_once_and_no_more_than_it(folder, results):
    tensors, reads = load_file(folder / "model.safetensors"), results["loaded"]["reads"]
    assert reads.keys() == tensors.keys()
    for name, tensor in tensors.items():
        parts = 1 if "layer_norm" in name else MAIN[1]
        assert len(reads[name]) == parts, name
        assert sum(map(math.prod, reads[name])) == tensor.size, name
        assert max(map(math.prod, reads[name])) <= -(-max(tensor.shape) // parts) * min(tensor.shape), name


@pytest.mark.parametrize("format", ["huggingface", "orbax"])
def test_a_model_on_a_mesh_is_saved_whole_and_loaded_in_parts(folder, results, format):
    again = results["loaded"][format]
    assert again["fingerprint"] == results["loaded"]["fingerprint"] == dvp_jax.load_model(folder).fingerprint
    numbers = 33  # of the classifier
    for name, tensor in load_file(folder / "model.safetensors").items():
        if "layer_norm" in name:
            numbers += tensor.size
        else:
            numbers += 53 * 32 if name == "shared.weight" else tensor.size // MAIN[1]  # 4 * 53 = 211 + 1
    assert again["bytes_on_a_device"] == 4 * numbers


def test_losses_of_training_on_a_mesh_are_those_of_one_device(results):
    alone, together = results["trained"]
    assert len(alone) == 3
    np.testing.assert_allclose(together, alone, rtol=1e-5)


def test_training_continues_on_another_mesh(results):
    moved, where = results["resumed"]
    assert moved == 4.0  # a step adds 1, and there were 2 on each mesh
    assert "'model': 4" in where and "spec=P('model',)" in where


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("axes", "mesh has the axes data, heads; allowed: data and model"),
        ("sizes", "mesh has 6 devices along model, which do not divide num_heads 8; allowed: 1, 2, 4, 8"),
        ("devices", "mesh is (4, 4), 16 devices; allowed: at most the 8 here"),
        ("numbers", "mesh is (4,); allowed: two integers of at least 1, the sizes of data and model"),
        ("unembedding", "unembedding is 'int8'; allowed on a mesh: auto, float"),
        ("batch", "batch_size is 6; allowed: multiples of 4, accumulation 1 times 4 devices along data"),
        ("adafactor", "this mesh adds 1 to the 41; allowed: adamw, or a model axis that divides them"),
    ],
)
def test_what_does_not_fit_a_mesh_is_refused(results, case, message):
    assert message in results["refused"][case]


def test_several_processes_without_a_mesh_are_refused(monkeypatch):
    monkeypatch.setattr(processes, "current", lambda: processes.Process(0, 2))
    message = "model.mesh is None; allowed with 2 processes: a mesh of all their devices"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        check_batch(tiny_model(), TrainConfig(steps=1, batch_size=8))


@pytest.mark.parametrize(
    ("sizes", "all_processes", "message"),
    [
        ((1, 2), True, "mesh is (1, 2), 2 devices; allowed: all 4 of 2 processes"),
        ((1, 3), False, "mesh is (1, 3), 3 devices; allowed: all 4 of 2 processes, or at most the 2 of each"),
        ((4, 2), False, "mesh is (4, 2), 8 devices; allowed: all 4 of 2 processes, or at most the 2 of each"),
    ],
)
def test_a_mesh_of_several_processes_has_all_their_devices(monkeypatch, sizes, all_processes, message):
    monkeypatch.setattr(jax, "devices", lambda: [None] * 4)
    monkeypatch.setattr(jax, "local_devices", lambda: [None] * 2)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make_mesh(sizes, all_processes=all_processes)


_MEMORY = """
import re, sys
import jax, jax.numpy as jnp
import dvp_jax
from dvp_jax.runs import processes
from dvp_jax.t5 import hugging_face

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])

source, target, limit, *rest = sys.argv[1:]
place = dict(argument.lstrip("-").split("=") for argument in rest)
processes.join(place["coordinator"], int(place["num_processes"]), int(place["process_id"]))
hugging_face.MAX_FILE_BYTES = int(limit)
mesh = jax.make_mesh((1, 2), ("data", "model"))
jnp.zeros(3).block_until_ready()
before = peak()
model = dvp_jax.load_model(source, mesh=mesh)
loaded = peak()
dvp_jax.save_model(target, model)
print(loaded - before, peak() - before, sum(x.addressable_data(0).nbytes for x in jax.tree.leaves(model.params)))
processes.leave()
"""


@pytest.mark.slow
def test_each_of_two_processes_holds_its_half_and_a_tensor_or_a_file_of_the_model(tmp_path):
    # 280 MB in tensors of at most 8 MB: large against what the interpreter itself takes meanwhile.
    shape = {"vocab_size": 2000, "d_model": 1024, "d_kv": 64, "num_heads": 16, "d_ff": 2048}
    source = save(random_model("t5", **shape, num_decoder_layers=5), tmp_path / "in")
    tensors, limit = load_file(source / "model.safetensors"), 40_000_000
    size, largest = (of(x.nbytes for x in tensors.values()) for of in (sum, max))
    for run in end(begin([["-c", _MEMORY, source, tmp_path / "out", limit]] * 2)):
        assert run.returncode == 0, run.stderr
        loading, saving, part = map(int, run.stdout.splitlines()[-1].split())  # behind what Gloo says
        noise = 90e6  # Gloo, a program to gather each shape, what the allocator keeps of parts that were freed
        assert size / 2 <= part <= size / 2 + 1e6  # norms are in both
        assert loading <= part + largest + noise, f"{loading / size:.2f} of the model"
        assert saving <= part + limit + largest + noise, f"{saving / size:.2f} of the model"
    files = list((tmp_path / "out").glob("model-*.safetensors"))
    assert len(files) > size / limit
    for file in files:
        for name, tensor in load_file(file).items():
            np.testing.assert_array_equal(tensor, tensors.pop(name), err_msg=name)
    assert not tensors


def test_without_a_mesh_no_row_is_added():
    assert [round_up_rows(None, rows) for rows in (1, 3)] == [1, 3]
