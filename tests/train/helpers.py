"""Tiny models, data and tasks for the tests of training."""

from __future__ import annotations

import atexit
import dataclasses
import faulthandler
import os
import resource
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
import transformers
from flax import traverse_util

from dvp_jax import Model, T5Config
from dvp_jax.data import Example
from dvp_jax.t5.hugging_face import parameter_shapes
from dvp_jax.train import trainer
from dvp_jax.train.batches import Batch, Batches
from dvp_jax.train.trainer import StepMetrics, TrainConfig
from tests.launching import TIMEOUT_S, fork

CONFIG = T5Config(
    vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=1, num_decoder_layers=2, dropout_rate=0.1
)
WORDS = ["<pad>", "</s>", "<unk>", *(f"w{index}" for index in range(3, CONFIG.vocab_size))]  # by id


def tiny_model(config: T5Config = CONFIG, seed: int = 0) -> Model:
    """A model with random parameters, made without a compiler."""
    random = np.random.default_rng(seed)
    params = {
        path: jnp.asarray(random.normal(1.0 if path[-1] == "scale" else 0.0, 0.3, shape), jnp.float32)
        for path, shape in parameter_shapes(config).items()
    }
    return Model(config, traverse_util.unflatten_dict(params))


def random_rows(lengths: Sequence[int], seed: int = 0) -> list[list[int]]:
    """Rows of random ids of the given lengths, each closed by the end token."""
    random = np.random.default_rng(seed)
    return [[*random.integers(3, CONFIG.vocab_size, length - 1).tolist(), 1] for length in lengths]


def make_batches(count: int = 10, batch_size: int = 4, *, target_lengths: Sequence[int] = (3, 8), seed: int = 0):
    """Batches of random examples whose target lengths are drawn from a range."""
    random = np.random.default_rng(seed)
    sources = random_rows(random.integers(4, 33, count), seed)
    targets = random_rows(random.integers(*target_lengths, count, endpoint=True), seed + 1)
    return Batches(sources, targets, pad_token_id=0, batch_size=batch_size, seed=seed)


def masked_batch(vocab_size: int, seed: int = 0) -> Batch:
    """Three random rows of different lengths. The last row has no targets."""
    random = np.random.default_rng(seed)
    ids, targets = (random.integers(2, vocab_size, (3, length)).astype(np.int32) for length in (9, 6))
    mask = np.arange(9) < np.array([[9], [4], [9]])
    target_mask = np.arange(6) < np.array([[6], [3], [0]])
    return Batch(*map(jnp.asarray, (ids, mask, targets, target_mask)))


def word_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A tokenizer whose words are WORDS."""
    ids = {word: index for index, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@dataclasses.dataclass(frozen=True)
class ListTask:
    """A task whose examples are given."""

    pairs: Sequence[tuple[str, tuple[str, ...]]]
    name: str = "made_up"
    max_source_length: int = 32
    max_new_tokens: int = 8

    def load(self) -> list[Example]:
        return [Example(str(i), prompt, references) for i, (prompt, references) in enumerate(self.pairs)]


def flat(tree: object) -> dict[str, np.ndarray]:
    """The arrays of a tree under their paths."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(found: object, expected: object) -> None:
    """Expects two trees of arrays to be equal, bit for bit."""
    found, expected = flat(found), flat(expected)
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def files_under(folder: Path) -> dict[str, bytes]:
    """All files of a folder with their content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def counting_step(config, cfg, state, batch):
    """A training step without a compiler: adds 1 to all parameters; its loss is 10 times the step."""
    number = state.step + 1
    params = jax.tree.map(lambda x: x + 1, state.params)
    return trainer.TrainState(number, params, state.optimizer), StepMetrics(10.0 * number, jnp.float32(1.0))


class Watched:
    """Batches that call a function before each step, counted from 1."""

    def __init__(self, batches: Batches, before: Callable[[int], object]) -> None:
        self._batches, self._before = batches, before

    def at(self, index: int) -> Batch:
        self._before(index + 1)
        return self._batches.at(index)

    def once(self) -> Iterator[Batch]:
        return self._batches.once()


# Functions that tests call in a process of its own


def start(function: Callable[..., None], log: Path, *arguments: object) -> BaseProcess:
    """Calls a function of this module in a forked process, whose output goes to a file."""
    return fork(_redirected, log, function, *arguments)


def finish(process: BaseProcess, log: Path) -> int | None:
    """Waits until a process has ended; its exit status. Fails with the stacks of one that hangs."""
    process.join(TIMEOUT_S)
    if process.is_alive():
        os.kill(process.pid, signal.SIGABRT)  # faulthandler then writes the stack of each thread
        process.join()
        pytest.fail(f"{process} ran for {TIMEOUT_S} s:\n{log.read_text()}")
    return process.exitcode


def _redirected(log: Path, function: Callable[..., None], *arguments: object) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    faulthandler.enable()
    try:
        function(*arguments)
    finally:
        atexit._run_exitfuncs()  # as Python does at its end, but not at that of a forked process


def launch_finetune(arguments: list[str]) -> None:
    """As `python -m experiments.finetune`."""
    jax.config.update("jax_disable_most_optimizations", True)
    sys.argv = ["finetune", *arguments]
    runpy.run_module("experiments.finetune", run_name="__main__")


def train_until_the_disk_is_full(workdir: Path, cfg: TrainConfig, step: int, after: int | None) -> None:
    """Counts, and bounds the size of files before a step, once a checkpoint is written; writes the error."""

    def before(current: int) -> None:
        if current == step:
            while after is not None and not (workdir / "checkpoints" / str(after)).is_dir():
                time.sleep(0.01)
            for descriptor in (1, 2):  # else what is printed from here on may be the first to meet the bound
                os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # metrics are smaller, a checkpoint is not

    jax.config.update("jax_enable_compilation_cache", False)  # else JAX's cache may be the first to meet the bound
    trainer.train_step = counting_step
    try:
        trainer.train(tiny_model(), Watched(make_batches(), before), None, cfg, workdir)
    except OSError as error:
        (workdir / "error").write_text(str(error), encoding="utf-8")


def train_to_be_killed(workdir: Path, cache: Path, cfg: TrainConfig, steps: Connection) -> None:
    """Trains with resume, tells each step as it begins, and writes the parameters in the end."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    config = dataclasses.replace(CONFIG, vocab_size=199, d_model=32, dropout_rate=0.1)
    batches = Watched(make_batches(20, 4, target_lengths=(3, 14)), steps.send)  # two buckets
    model = trainer.train(tiny_model(config), batches, None, cfg, workdir, resume=True)
    np.savez(workdir / "params.npz", **flat(model.params))
