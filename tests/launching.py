"""Starts launchers as a user does, and makes the tiny random model that they run on."""

from __future__ import annotations

import atexit
import dataclasses
import faulthandler
import functools
import itertools
import json
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import jax
import pytest
import tokenizers
import torch
import transformers

from dvp_jax.data import Example
from tests.models import random_model, save
from tests.reference import Reference, reference_decode

ROOT = Path(__file__).parents[1]
TIMEOUT_S = 600
"""A process that takes longer hangs. A busy machine is no reason to fail."""
QUICK_COMPILER = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
"""Set for all processes that tests start: what the fixture `quick_compiler` sets for a module."""

VOCAB_SIZE, D_MODEL, NUM_LAYERS = 600, 32, 4
SYLLABLES = ["".join(letters) for letters in itertools.product("bdfgklmnprst", "aeiou")]
WORDS = ["translate", "English", "to", "German", ":", "."]
WORDS += ["".join(pair) for pair in itertools.product(SYLLABLES, SYLLABLES)]
PIECES = ["<pad>", "</s>", "<unk>", *WORDS][:VOCAB_SIZE]  # by id
SENTENCES = [
    "baba bade badi bado .",
    "bagu",
    "gulu is no word",
    "bele beme bene bepe bere bese bete bibi bibo bibu bida bide bidi bido bidu .",
    "dada dade",
    "babu babe .",
]


@dataclasses.dataclass
class Checkpoint:
    """A random model and tokenizer in a folder, and the same model in PyTorch."""

    folder: Path
    peer: transformers.PreTrainedModel

    def ids(self, prompt: str) -> list[int]:
        """The ids that the tokenizer must give, from the list of pieces alone."""
        words = re.findall(r"\w+|[^\w\s]+", prompt)
        return [PIECES.index(word) if word in PIECES else 2 for word in words] + [1]

    def text(self, tokens: list[int]) -> str:
        """The text that the tokenizer must give."""
        return " ".join(PIECES[token] for token in tokens if token > 2)

    def decode(self, prompt: str, **fields: object) -> Reference:
        """What the slow decoder of tests/reference.py gives."""
        return reference_decode(self.peer, self.ids(prompt), **fields)


def make_checkpoint(folder: Path, seed: int = 1, **fields: int) -> Checkpoint:
    """Writes a random model, and a tokenizer whose words are PIECES.

    Seed 1 gives exits at every depth, and texts of different lengths that do not repeat one word.
    """
    peer = random_model("t5.1.1", seed=seed, spread=1.0, depth=2.0, vocab_size=VOCAB_SIZE, **fields)
    with torch.no_grad():
        peer.lm_head.weight[1] *= 1.3  # the end token, so that texts end
    save(peer, folder)
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({piece: i for i, piece in enumerate(PIECES)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return Checkpoint(folder, peer)


class Sentences:
    """A task of given sentences that remembers what it was asked to score."""

    name = "sentences"
    max_source_length = 512
    max_new_tokens = 5

    def __init__(self, sentences: Sequence[str]) -> None:
        self.examples = [Example(f"id {i}", sentence, (sentence.upper(),)) for i, sentence in enumerate(sentences)]
        self.scored: list[tuple[list[str], list[Example]]] = []

    def load(self) -> list[Example]:
        return list(self.examples)

    def score(self, predictions: Sequence[str], examples: Sequence[Example]) -> dict[str, float]:
        self.scored.append((list(predictions), list(examples)))
        return {"asked": float(len(self.scored))}


SAMSUM_CONFIG = """
from experiments.configs.common import evaluation, sweep

def get_config():
    config = evaluation(
        model={model!r},
        tasks={{"samsum": {{"path": {data!r}, "max_new_tokens": 12}}}},
        threshold=0.5,
        prune_sizes=(8,),
    )
    {ending}
"""


def write_configs(folder: Path, count: int, **endings: str) -> Path:
    """Writes a checkpoint, `count` dialogues, and a config of both under each name, with its last lines."""
    checkpoint = make_checkpoint(folder / "model", seed=1)
    short = sorted(SENTENCES, key=len)[:5]  # of one source bucket
    rows = [f"{i},{short[i % 5]} {short[i % 4]},dada dade" for i in range(count)]
    (folder / "test.csv").write_text("\n".join(["id,dialogue,summary", *rows]) + "\n")
    fields = {"model": str(checkpoint.folder), "data": str(folder / "test.csv")}
    for name, ending in endings.items():
        (folder / f"{name}.py").write_text(SAMSUM_CONFIG.format(ending=ending, **fields))
    return folder


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs Python from the root of the repository."""
    return finish(start_python(*arguments))


def start_python(*arguments: object) -> subprocess.Popen[str]:
    """Starts Python in the root of the repository."""
    command = [sys.executable, "-X", "faulthandler", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | QUICK_COMPILER, text=True, **pipes)


def launch(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """As `python -m experiments.NAME`, in a forked process."""
    return call(functools.partial(run_launcher, name), *arguments)


def run_launcher(name: str) -> None:
    """Runs `experiments.NAME` as the main module of this process."""
    runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


def call(function: Callable[[], None], *arguments: object) -> subprocess.CompletedProcess[str]:
    """Calls a function in a forked process, with the arguments in `sys.argv`."""
    return finish(Forked(function, *arguments))


def finish(process: subprocess.Popen[str] | Forked) -> subprocess.CompletedProcess[str]:
    """Waits until a process has ended. Fails with the stacks of one that hangs."""
    try:
        stdout, stderr = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # faulthandler then writes the stack of each thread
        _, stderr = process.communicate()
        pytest.fail(f"{process.args} ran for {TIMEOUT_S} s:\n{stderr}")
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


class Forked:
    """A function's call in a process of its own, with the methods of `subprocess.Popen`.

    The process is forked from one that has imported the libraries, which takes seconds, and has not started JAX.

    Args:
        function: of a module, so that it can be pickled.
        arguments: become `sys.argv`.
    """

    def __init__(self, function: Callable[[], None], *arguments: object) -> None:
        self.args = ["python", *map(str, arguments)]
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        for path in self._outputs:
            path.touch()
        self._process = fork(_run, function, self.args, os.environ.get("XLA_FLAGS"), *self._outputs)

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self._process.is_alive():
            raise subprocess.TimeoutExpired(self.args, timeout)
        stdout, stderr = (path.read_text(encoding="utf-8") for path in self._outputs)
        return stdout, stderr


def _run(function: Callable[[], None], argv: list[str], xla_flags: str | None, stdout: Path, stderr: Path) -> None:
    for path, descriptor in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
    faulthandler.enable()
    if xla_flags is not None:
        os.environ["XLA_FLAGS"] = xla_flags
    jax.config.update("jax_disable_most_optimizations", True)
    os.chdir(ROOT)
    sys.argv = argv
    try:
        function()
    finally:
        atexit._run_exitfuncs()  # as Python does at its end, but not at that of a forked process


PRELOADED = [
    "tests.launching",
    "tests.train.helpers",
    "dvp_jax.analysis.run",
    "dvp_jax.evaluate.selection",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "ml_collections.config_flags",
]
"""What takes a process seconds to import."""


def fork(function: Callable[..., None], *arguments: object) -> BaseProcess:
    """Calls a function in a process forked from one that has imported the libraries and not started JAX."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def check_error(run: subprocess.CompletedProcess[str], *parts: object) -> None:
    """Expects one line "error: ..." with the parts, after nothing but a progress bar, and exit status 1."""
    lines = run.stderr.splitlines()
    assert run.returncode == 1, run.stderr
    assert "Traceback" not in run.stderr
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], run.stderr
    assert all(str(part) in lines[-1] for part in parts), run.stderr
    assert run.stdout == ""


def read_lines(path: Path) -> list[dict]:
    """The objects of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def files_of(folder: Path) -> list[str]:
    """Names of all files, hidden ones too."""
    return sorted(entry.name for entry in folder.iterdir())
