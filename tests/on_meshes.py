"""Decodes, trains, loads and saves on 8 virtual devices, in a process of its own, for tests/t5/test_sharding.py.

python -m tests.on_meshes CHECKPOINT RESULTS [all]
"""

import os

if __name__ == "__main__":  # a test imports the settings below, and the processes that it starts have one device
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import contextlib
import dataclasses
import json
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

import dvp_jax
from dvp_jax.decode.api import encode, lower_decode
from dvp_jax.decode.trace import trace
from dvp_jax.t5 import hugging_face
from dvp_jax.t5.load import shard_model
from dvp_jax.t5.sharding import make_mesh
from dvp_jax.train import trainer
from dvp_jax.train.trainer import TrainConfig, train
from tests.train.helpers import CONFIG, counting_step, make_batches, tiny_model

MESHES = ((8, 1), (4, 2), (2, 4), (1, 8))
PROMPTS = [
    [4, 3],
    [183, 97, 78],
    [77, 78, 79],
    [69],
    [135, 116, 19],
]  # 5 rows: a batch on several devices needs more
EARLY = {"method": "calm", "max_new_tokens": 6, "threshold": 0.4, "min_exit_layer": 1}
PRUNED = {**EARLY, "method": "dvp", "prune_layer": 1, "prune_size": 10}
SETTINGS: dict[str, dict[str, Any]] = {
    "calm": EARLY,
    "dvp": PRUNED,
    "full": {**EARLY, "method": "full"},
    "static": {**EARLY, "method": "static", "static_exit_layer": 2},
    "state": {**EARLY, "confidence": "state", "threshold": 0.8},
    "meta": {**EARLY, "confidence": "meta", "threshold": 0.6},
    # More tokens than a device of 8 has rows.
    "mass": {
        **PRUNED,
        "prune_rule": "mass",
        "prune_mass": 0.75,
        "prune_size": 40,
        "confidence": "softmax_max",
        "threshold": 0.5,
    },
    "decay": {**PRUNED, "prune_rule": "decay", "prune_size_min": 2, "confidence": "entropy", "threshold": 0.85},
    "oracle": {**EARLY, "method": "oracle"},
    "shallow_deep": {**EARLY, "method": "shallow_deep", "max_waiting": 3},
    "lossless": {**PRUNED, "method": "lossless", "max_waiting": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
}
SETTINGS["decay"]["final_vocab"] = "pruned"
MAIN = (2, 4)
RUN = {(8, 1): ("dvp",), MAIN: ("dvp", "meta", "lossless")}
"""The settings to run on a mesh. With `all`, every setting runs on every mesh."""

HEADS = dataclasses.replace(CONFIG, num_heads=8, d_kv=4, num_decoder_layers=1)
TRAINED = TrainConfig(steps=3, batch_size=8, accumulation=2, learning_rate=1e-2, log_every=1, checkpoint_every=2)


def source() -> tuple[np.ndarray, np.ndarray]:
    """Ids and mask of PROMPTS."""
    ids = np.zeros((len(PROMPTS), 3), np.int32)
    for row, prompt in enumerate(PROMPTS):
        ids[row, : len(prompt)] = prompt
    return ids, ids > 0


def decoded(model: dvp_jax.Model, names: Any) -> dict[str, Any]:
    """Tokens, exits and confidences of settings."""
    configs = {name: dvp_jax.DecodeConfig(**SETTINGS[name]) for name in names}
    return {name: vars(dvp_jax.generate(model, *source(), cfg)) for name, cfg in configs.items()}


def engine_texts(model: dvp_jax.Model) -> list[tuple[list[int], list[int]]]:
    """Tokens and exits of PROMPTS by an engine with fewer slots than prompts."""
    texts = dvp_jax.Engine(model, dvp_jax.DecodeConfig(**SETTINGS["dvp"]), slots=2).texts(PROMPTS)
    return [(text.tokens, text.exit_layers) for text in texts]


def analysed(model: dvp_jax.Model) -> dict[str, Any]:
    """Teacher-forced logits, and what each depth reads."""
    tokens, start = np.array(PROMPTS[1:3], np.int32), np.zeros((len(PROMPTS), 1), np.int32)
    cfg = dvp_jax.DecodeConfig(**PRUNED)
    read = trace(model, encode(model, *source()), tokens, np.full_like(tokens, 3), cfg)
    logits = dvp_jax.teacher_forced_logits(model, *source(), start)
    return jax.tree.map(np.asarray, {"logits": logits, **vars(read)})


def loaded(folder: Path, workdir: Path) -> dict[str, Any]:
    """Shapes of the parts that were read of each tensor. For each format, the model saved and loaded again."""
    reads: dict[str, list[tuple[int, ...]]] = {}

    class Spy:
        def __init__(self, tensor: Any, name: str) -> None:
            self.tensor, self.name = tensor, name

        def __getitem__(self, index: Any) -> np.ndarray:
            part = self.tensor[index]
            reads.setdefault(self.name, []).append(part.shape)
            return part

    original = hugging_face.TensorFiles.open

    @contextlib.contextmanager
    def opened(files: Any, name: str) -> Iterator[Spy]:
        with original(files, name) as tensor:
            yield Spy(tensor, name)

    hugging_face.TensorFiles.open = opened  # type: ignore[assignment]
    mesh = jax.make_mesh((2, 4), ("data", "model"))
    model = dvp_jax.load_model(folder, mesh=mesh)
    hugging_face.TensorFiles.open = original
    results: dict[str, Any] = {"reads": reads, "fingerprint": model.fingerprint}
    for format in ("huggingface", "orbax"):
        dvp_jax.save_model(workdir / format, model, format)
        again = dvp_jax.load_model(workdir / format, mesh=mesh)
        first = sum(array.addressable_shards[0].data.nbytes for array in jax.tree.leaves(again.params))
        results[format] = {"fingerprint": again.fingerprint, "bytes_on_a_device": first}
    return results


def trained(workdir: Path, shape: tuple[int, int] | None) -> list[float]:
    """Training losses of Adafactor with dropout."""
    model = shard_model(tiny_model(HEADS), make_mesh(shape))
    batches = make_batches(batch_size=8)
    batches._mesh = model.mesh
    train(model, batches, None, TRAINED, workdir)
    return [json.loads(line)["loss"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def resumed(workdir: Path) -> tuple[float, str]:
    """By how much 4 counted steps changed the parameters, 2 on one mesh and 2 on another; and their sharding."""
    step, trainer.train_step = trainer.train_step, counting_step
    for shape, steps in (((4, 2), 2), ((2, 4), 4)):
        model = shard_model(tiny_model(HEADS), make_mesh(shape))
        cfg = dataclasses.replace(TRAINED, steps=steps)
        out = train(model, make_batches(batch_size=8), None, cfg, workdir, resume=True)
    trainer.train_step = step
    moved = jax.tree.map(
        lambda one, other: np.unique(np.round(one - np.asarray(other), 4)), out.params, model.params
    )
    values = np.unique(np.concatenate(jax.tree.leaves(moved)))
    return float(values.item()), str(out.params["shared"].sharding)


def refused(folder: Path) -> dict[str, str]:
    """The error messages for bad meshes."""
    one = dvp_jax.load_model(folder)
    on_two = shard_model(one, make_mesh((1, 2)))
    three = shard_model(tiny_model(dataclasses.replace(HEADS, vocab_size=41)), make_mesh((1, 2)))

    def message_of(call: Any) -> str:
        try:
            call()
        except ValueError as error:
            return str(error)
        return "nothing"

    cfg = TrainConfig(steps=1, batch_size=6)
    return {
        "axes": message_of(lambda: dvp_jax.load_model(folder, mesh=jax.make_mesh((4, 2), ("data", "heads")))),
        "sizes": message_of(lambda: dvp_jax.load_model(folder, mesh=jax.make_mesh((1, 6), ("data", "model")))),
        "devices": message_of(lambda: make_mesh((4, 4))),
        "numbers": message_of(lambda: make_mesh((4,))),
        "unembedding": message_of(
            lambda: dvp_jax.generate(on_two, *source(), dvp_jax.DecodeConfig(unembedding="int8"))
        ),
        "batch": message_of(lambda: trainer.check_batch(shard_model(one, make_mesh((4, 2))), cfg)),
        "adafactor": message_of(lambda: trainer.check_batch(three, cfg)),
    }


def main(folder: Path, path: Path, everything: bool) -> None:
    """Writes the results for the tests."""
    results: dict[str, Any] = {"decoded": {}}
    for shape in MESHES if everything else RUN:
        model = dvp_jax.load_model(folder, mesh=jax.make_mesh(shape, ("data", "model")))
        results["decoded"][shape] = decoded(model, SETTINGS if everything else RUN[shape])
        if shape == MAIN:
            results["analysed"] = analysed(model)
            results["engine"] = engine_texts(model)
            cfg = dvp_jax.DecodeConfig(**PRUNED, branch_every=1)
            results["hlo"] = lower_decode(model, encode(model, *source()), cfg)[0].compile().as_text()
    results["loaded"] = loaded(folder, path.parent)
    results["trained"] = [trained(path.parent / f"train{shape}", shape) for shape in (None, (4, 2))]
    results["resumed"] = resumed(path.parent / "resumed")
    results["refused"] = refused(folder)
    path.write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    jax.config.update("jax_disable_most_optimizations", True)
    main(Path(sys.argv[1]), Path(sys.argv[2]), "all" in sys.argv)
