"""What the benchmark times: methods with forced exits on a model of a published shape, and the presets."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dvp_jax.decode.config import DecodeConfig
from dvp_jax.exits.policy import ExitPolicy
from dvp_jax.exits.thresholds import ALWAYS, NEVER
from dvp_jax.t5.config import SHAPES, T5Config
from dvp_jax.t5.load import Model, load_model
from dvp_jax.t5.model import init_params

METHODS = ("full", "static", "calm", "dvp")
"""The methods that are timed unless others are named."""
SPREAD = 0
"""As a depth: each token's exit is drawn evenly from all candidate depths."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with forced exits.

    Attributes:
        method: as in `DecodeConfig`.
        depth: the depth at which every token exits, or SPREAD.
        prune_size: K.
        branch_every: as in `DecodeConfig`.
        unembedding: as in `DecodeConfig`.
        max_waiting: as in `DecodeConfig`, for "shallow_deep"; None for its default.
    """

    method: str
    depth: int
    prune_size: int = 64
    branch_every: int | None = None
    unembedding: str = "auto"
    max_waiting: int | None = None

    def config(self, num_layers: int, new_tokens: int) -> DecodeConfig:
        """The config that decodes this case.

        Cases of a method that differ in depth alone share a config where the thresholds can force the exit, and so
        share a compiled program.

        Args:
            num_layers: decoder layers of the model, L.
            new_tokens: tokens that each row generates.
        """
        settings: dict[str, Any] = {}
        if self.method == "static":
            settings["static_exit_layer"] = self.depth
        elif self.method == "shallow_deep" and self.depth not in (SPREAD, num_layers):
            settings["min_exit_layer"] = self.depth  # the only depth before the last at which it exits
        if self.max_waiting is not None:
            settings["max_waiting"] = self.max_waiting
        return DecodeConfig(
            method=self.method,
            max_new_tokens=new_tokens,
            prune_size=self.prune_size,
            branch_every=self.branch_every,
            unembedding=self.unembedding,
            **settings,
        )


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Cases on one model, timed in turn.

    Attributes:
        shape: a key of SHAPES for random weights, or a checkpoint.
        cases: the cases.
        vocab_size: the vocabulary, where it is not the shape's own.
        batch: rows decoded together.
        source_length: tokens of each source.
        new_tokens: tokens that each row generates.
        dtype: dtype of the weights.
        baselines: the library of `dvp_jax.bench.baselines` whose decoders are timed too, if any.
    """

    shape: str
    cases: tuple[Case, ...]
    vocab_size: int | None = None
    batch: int = 1
    source_length: int = 256
    new_tokens: int = 64
    dtype: str = "float32"
    baselines: str | None = None


def grid(
    num_layers: int,
    methods: Sequence[str],
    depths: Sequence[int],
    *,
    max_waiting: Sequence[int | None] = (None,),
    **fields: Any,
) -> tuple[Case, ...]:
    """The cases of each method at each depth.

    "full" has the last depth only, and "static" no SPREAD.

    Args:
        num_layers: decoder layers of the model, L.
        methods: as in `DecodeConfig`.
        depths: the exit depths.
        max_waiting: the values that "shallow_deep" is timed with.
        **fields: the other fields of every case.
    """
    cases = []
    for method in methods:
        for depth in (num_layers,) if method == "full" else depths:
            if method == "static" and depth == SPREAD:
                continue
            for waiting in max_waiting if method == "shallow_deep" else (None,):
                cases.append(Case(method, depth, max_waiting=waiting, **fields))
    return tuple(cases)


VOCAB_SIZES = (8_000, 32_000, 128_000, 250_000)

PRESETS: dict[str, tuple[Benchmark, ...]] = {
    "readme": (
        Benchmark("t5-base", grid(12, METHODS, (2, 3, 6, 9, 12, SPREAD)), baselines="huggingface"),
        Benchmark("t5-base", grid(12, ("full", "dvp"), (6,)), baselines="ctranslate2"),
        *(Benchmark("t5-base", grid(12, METHODS[1:], (6,)), vocab_size=size) for size in VOCAB_SIZES),
        *(
            Benchmark("t5-base", grid(12, ("full", "dvp"), (3, 6, 12)), batch=batch, new_tokens=16)
            for batch in (8, 32)
        ),
    ),
    "gpu": (
        *(
            Benchmark(shape, grid(24, METHODS, (6, 12, 24, SPREAD)), dtype="bfloat16", baselines="huggingface")
            for shape in ("t5-large", "t5-3b")
        ),
        Benchmark(
            "t5-large",
            grid(24, ("dvp",), (12,), branch_every=2) + grid(24, ("dvp",), (12,), branch_every=4),
            dtype="bfloat16",
        ),
    ),
}


def make_benchmark(
    shape: str,
    methods: Sequence[str],
    depths: Sequence[int] | None,
    *,
    prune_size: int,
    branch_every: Sequence[int | None],
    unembeddings: Sequence[str],
    max_waiting: Sequence[int],
    dtype: str,
    **fields: Any,
) -> Benchmark:
    """A benchmark of every combination of the settings.

    Args:
        shape: a key of SHAPES, or a checkpoint.
        methods: as in `DecodeConfig`.
        depths: the exit depths; None for all, half and a quarter of the layers.
        prune_size: K.
        branch_every: the values of `branch_every` to compare.
        unembeddings: the forms of the unembedding to compare.
        max_waiting: the values of `max_waiting` to compare, for "shallow_deep".
        dtype: dtype of the weights.
        **fields: the other fields of `Benchmark`.

    Raises:
        ValueError: a depth that the model does not have, or an unreadable checkpoint.
        FileNotFoundError: there is no such checkpoint.
    """
    num_layers = _config(shape, dtype).num_decoder_layers
    depths = (num_layers, num_layers // 2, num_layers // 4) if depths is None else depths
    if not all(depth == SPREAD or 2 <= depth <= num_layers for depth in depths):
        raise ValueError(f"depths is {list(depths)}; allowed: from 2 to {num_layers}, or {SPREAD} for a spread")
    cases: tuple[Case, ...] = ()
    for every, unembedding in itertools.product(branch_every, unembeddings):
        cases += grid(
            num_layers,
            methods,
            depths,
            max_waiting=max_waiting,
            prune_size=prune_size,
            branch_every=every,
            unembedding=unembedding,
        )
    return Benchmark(shape, cases, dtype=dtype, **fields)


_load_checkpoint = lru_cache(maxsize=1)(load_model)  # needed for the depth of the decoder, then for timing


def _config(shape: str, dtype: str) -> T5Config:
    return SHAPES[shape] if shape in SHAPES else _load_checkpoint(shape, dtype).config


def make_model(benchmark: Benchmark) -> Model:
    """The model of a benchmark, without an end token, so that every row generates its full length.

    Raises:
        ValueError: the checkpoint cannot be read.
        FileNotFoundError: there is no such checkpoint.
    """
    config = dataclasses.replace(_config(benchmark.shape, benchmark.dtype), eos_token_id=-1)
    if benchmark.shape not in SHAPES:
        return dataclasses.replace(_load_checkpoint(benchmark.shape, benchmark.dtype), config=config)
    if benchmark.vocab_size:
        config = dataclasses.replace(config, vocab_size=benchmark.vocab_size)
    return Model(config, init_params(config, jax.random.key(0), jnp.dtype(benchmark.dtype)))


def exit_depths(depth: int, policy: ExitPolicy, num_layers: int, new_tokens: int) -> Int[np.ndarray, " tokens"]:
    """The depth at which each generated token is to exit.

    Args:
        depth: the depth of all tokens, or SPREAD.
        policy: the exit policy, whose candidate depths SPREAD draws from.
        num_layers: decoder layers of the model, L.
        new_tokens: how many tokens are generated.
    """
    if depth != SPREAD:
        return np.full(new_tokens, depth)
    # Shallow-deep runs all layers after the first exit or none.
    step = num_layers - policy.first_exit if policy.loop == "shallow_deep" else 1
    candidates = np.arange(policy.first_exit, num_layers + 1, step)
    return np.random.default_rng(0).choice(candidates, new_tokens)


def forcing_thresholds(depths: Int[np.ndarray, " tokens"], num_layers: int) -> Float[Array, "tokens depths"]:
    """The thresholds, float32, with which token t exits at depths[t] whatever its confidence.

    Args:
        depths: the exit depth of each token, from 1 to L.
        num_layers: decoder layers of the model, L.
    """
    candidates = np.arange(1, num_layers + 1)
    # At the last depth every token exits without being asked.
    exits = (candidates >= depths[:, None]) & (candidates < num_layers)
    return jnp.asarray(np.where(exits, ALWAYS, NEVER), jnp.float32)
