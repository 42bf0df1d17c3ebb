"""What the benchmark times: methods with forced exits on a model of a published shape, and the presets."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dvp_jax.decode.config import DecodeConfig
from dvp_jax.exits.policy import ExitPolicy
from dvp_jax.exits.thresholds import ALWAYS, NEVER
from dvp_jax.t5.config import SHAPES, T5Config
from dvp_jax.t5.load import Model, load_model
from dvp_jax.t5.model import Params, init_params

METHODS = ("full", "static", "calm", "dvp")
"""The methods that are timed unless others are named."""
SPREAD = 0
"""As a depth: each token's exit is drawn evenly from all candidate depths."""
_CHOOSES_DEPTHS = ("calm", "dvp", "lossless")  # of the methods that are timed, those that read `exit_depths`
_WAITS = ("lossless", "shallow_deep")  # and `max_waiting`


@dataclasses.dataclass(frozen=True)
class Case:
    """A method with forced exits.

    Attributes:
        method: as in `DecodeConfig`.
        depth: the depth at which every token exits, or SPREAD. A depth at which the method asks nothing stands for
            the next one at which it does.
        prune_size: K.
        exit_depths: as in `DecodeConfig`: None for every depth, n for every n-th.
        branch_every: as in `DecodeConfig`.
        unembedding: as in `DecodeConfig`.
        max_waiting: as in `DecodeConfig`, for "lossless" and "shallow_deep"; None for its default.
    """

    method: str
    depth: int
    prune_size: int = 64
    exit_depths: int | None = None
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
            exit_depths=self.exit_depths,
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


class Preset(NamedTuple):
    """Benchmarks that run one after the other, each in a process of its own, and how long they may take."""

    benchmarks: tuple[Benchmark, ...]
    benchmark_s: float  # seconds after which a benchmark's process is killed
    total_s: float | None = None  # seconds for all of them; what is left then does not run


def grid(
    num_layers: int,
    methods: Sequence[str],
    depths: Sequence[int],
    *,
    exit_depths: Sequence[int | None] = (None,),
    max_waiting: Sequence[int | None] = (None,),
    **fields: Any,
) -> tuple[Case, ...]:
    """The cases of each method at each depth.

    "full" has the last depth only, and "static" no SPREAD.

    Args:
        num_layers: decoder layers of the model, L.
        methods: as in `DecodeConfig`.
        depths: the exit depths.
        exit_depths: the values that "calm", "dvp" and "lossless" are timed with.
        max_waiting: the values that "lossless" and "shallow_deep" are timed with.
        **fields: the other fields of every case.
    """
    cases = []
    for method in methods:
        for depth in (num_layers,) if method == "full" else depths:
            if method == "static" and depth == SPREAD:
                continue
            for waiting, every in itertools.product(
                max_waiting if method in _WAITS else (None,),
                exit_depths if method in _CHOOSES_DEPTHS else (None,),
            ):
                cases.append(Case(method, depth, exit_depths=every, max_waiting=waiting, **fields))
    return tuple(cases)


VOCAB_SIZES = (8_000, 32_000, 128_000, 250_000)
_QUARTERS = (6, 12, 24, SPREAD)  # of 24 layers
_ON_GPU = (
    *grid(24, ("full", "static"), _QUARTERS[:2]),
    *grid(24, ("dvp", "calm"), _QUARTERS, exit_depths=(None, 4)),
)

PRESETS: dict[str, Preset] = {
    "readme": Preset(
        (
            Benchmark("t5-base", grid(12, METHODS, (2, 3, 6, 9, 12, SPREAD)), baselines="huggingface"),
            Benchmark("t5-base", grid(12, ("full", "dvp"), (6,)), baselines="ctranslate2"),
            *(Benchmark("t5-base", grid(12, METHODS[1:], (6,)), vocab_size=size) for size in VOCAB_SIZES),
            *(
                Benchmark("t5-base", grid(12, ("full", "dvp"), (3, 6, 12)), batch=batch, new_tokens=16)
                for batch in (8, 32)
            ),
        ),
        benchmark_s=1800,
    ),
    "mt5": Preset(
        tuple(
            Benchmark(shape, grid(layers, methods, (layers // 2, layers)), baselines=library)
            for shape, layers in (("mt5-small", 8), ("mt5-base", 12))
            for methods, library in (
                (("full", "calm", "dvp", "lossless"), "huggingface"),
                (("full", "dvp"), "ctranslate2"),
            )
        ),
        benchmark_s=1800,
    ),
    # What matters most comes first: the rest does not run if the time is over.
    "gpu": Preset(
        (
            *(Benchmark(shape, _ON_GPU, dtype="bfloat16") for shape in ("t5-large", "t5-3b", "flan-t5-xxl")),
            Benchmark("t5-large", grid(24, ("full",), ()), dtype="bfloat16", baselines="huggingface"),
            *(
                Benchmark(shape, _ON_GPU, batch=batch, dtype="bfloat16")
                for batch in (32, 8)
                for shape in ("t5-large", "t5-3b", "flan-t5-xxl")
            ),
            Benchmark("t5-3b", grid(24, ("full",), ()), dtype="bfloat16", baselines="huggingface"),
            Benchmark(
                "t5-large",
                grid(24, ("full",), ())
                + grid(24, ("dvp",), (12,), branch_every=2)
                + grid(24, ("dvp",), (12,), branch_every=4),
                dtype="bfloat16",
            ),
        ),
        benchmark_s=140,
        total_s=470,  # eight minutes, less the start of this process and a margin
    ),
}


def make_benchmark(
    shape: str,
    methods: Sequence[str],
    depths: Sequence[int] | None,
    *,
    prune_size: int,
    exit_depths: Sequence[int | None],
    branch_every: Sequence[int | None],
    unembeddings: Sequence[str],
    max_waiting: Sequence[int | None],
    dtype: str,
    **fields: Any,
) -> Benchmark:
    """A benchmark of every combination of the settings.

    Args:
        shape: a key of SHAPES, or a checkpoint.
        methods: as in `DecodeConfig`. "full" comes first, since the others are compared with it.
        depths: the exit depths; None for all, half and a quarter of the layers, but at least 2.
        prune_size: K.
        exit_depths: the values of `exit_depths` to compare, for "calm", "dvp" and "lossless"; None for every
            depth.
        branch_every: the values of `branch_every` to compare.
        unembeddings: the forms of the unembedding to compare.
        max_waiting: the values of `max_waiting` to compare, for "lossless" and "shallow_deep"; None for the
            default.
        dtype: dtype of the weights.
        **fields: the other fields of `Benchmark`.

    Raises:
        ValueError: a depth that the model does not have, or an unreadable checkpoint.
        FileNotFoundError: there is no such checkpoint.
    """
    num_layers = model_config(Benchmark(shape, (), dtype=dtype)).num_decoder_layers
    if depths is None:  # each once: small models have a quarter below 2
        depths = list(dict.fromkeys(max(2, num_layers // part) for part in (1, 2, 4)))
    if not all(depth == SPREAD or 2 <= depth <= num_layers for depth in depths):
        raise ValueError(f"depths is {list(depths)}; allowed: from 2 to {num_layers}, or {SPREAD} for a spread")
    methods = sorted(methods, key=lambda method: method != "full")
    cases: tuple[Case, ...] = ()
    for every, unembedding in itertools.product(branch_every, unembeddings):
        cases += grid(
            num_layers,
            methods,
            depths,
            exit_depths=exit_depths,
            max_waiting=max_waiting,
            prune_size=prune_size,
            branch_every=every,
            unembedding=unembedding,
        )
    return Benchmark(shape, cases, dtype=dtype, **fields)


_load_checkpoint = lru_cache(maxsize=1)(load_model)  # needed for the depth of the decoder, then for timing


def model_config(benchmark: Benchmark) -> T5Config:
    """The shape of a benchmark's model, without an end token, so that every row generates its full length.

    Raises:
        ValueError: the checkpoint cannot be read, or another vocabulary is asked of it.
        FileNotFoundError: there is no such checkpoint.
    """
    if benchmark.shape not in SHAPES:
        config = _load_checkpoint(benchmark.shape, benchmark.dtype).config
        if benchmark.vocab_size not in (None, config.vocab_size):
            raise ValueError(
                f"vocab_size is {benchmark.vocab_size}; allowed with a checkpoint: its own, {config.vocab_size}"
            )
    else:
        config = SHAPES[benchmark.shape]
        if benchmark.vocab_size:
            config = dataclasses.replace(config, vocab_size=benchmark.vocab_size)
    return dataclasses.replace(config, eos_token_id=())


def make_model(benchmark: Benchmark) -> Model:
    """The model of a benchmark: a checkpoint, or random weights, with which every draft of "lossless" is right.

    Raises:
        ValueError: as `model_config`.
        FileNotFoundError: as `model_config`.
    """
    config = model_config(benchmark)
    if benchmark.shape not in SHAPES:
        return dataclasses.replace(_load_checkpoint(benchmark.shape, benchmark.dtype), config=config)
    params = init_params(config, jax.random.key(0), jnp.dtype(benchmark.dtype))
    if any(case.method == "lossless" for case in benchmark.cases):
        make_drafts_right(config, params, DecodeConfig.prune_layer)
    return Model(config, params)


def make_drafts_right(config: T5Config, params: Params, depth: int) -> None:
    """Makes the decoder's layers after a depth add zero to the hidden state, so that all depths read one token.

    Args:
        config: the shape of the model.
        params: random weights, which are changed in place. They take the same time as before.
        depth: of the last layer that adds something.
    """
    for index in range(depth, config.num_decoder_layers):
        layer = params["decoder"][f"layers_{index}"]
        for part, weight in (("self_attention", "output"), ("cross_attention", "output"), ("feed_forward", "wo")):
            layer[part][weight] = jnp.zeros_like(layer[part][weight])


def forced_depths(depth: int, policy: ExitPolicy, new_tokens: int) -> Int[np.ndarray, " tokens"]:
    """The depth at which each generated token is to exit.

    Args:
        depth: the depth of all tokens, or SPREAD. Where the policy asks nothing at that depth, the tokens exit at
            the next one at which it does, or at the last one.
        policy: the exit policy, whose candidate depths SPREAD draws from.
        new_tokens: how many tokens are generated.
    """
    depths = np.array([*policy.candidates, policy.last_depth])
    if depth != SPREAD:
        return np.full(new_tokens, depths[np.searchsorted(depths, depth)])
    return np.random.default_rng(0).choice(depths, new_tokens)


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
