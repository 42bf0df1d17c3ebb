"""Milliseconds per token against the bound that memory sets, exits forced to given depths, in one process.

    python -m experiments.benchmark --preset=readme --results=runs/benchmark

Random weights of a published shape (or a checkpoint), so that speed is separated from a model's quality: the
thresholds force each token to exit at the depth asked for. Cases run in turn, A B A B, and medians are reported.
`efficiency` is the time that reading what must be read would take at the machine's measured bandwidth, divided by
the time seen. Other decoders of the same weights run beside ours where they are installed.
Writes results.json and plots; prints tables.
"""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from dvp_jax.bench import baselines as peers
from dvp_jax.decode.api import encode, lower_decode
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.exits.cost import bytes_per_token
from dvp_jax.exits.policy import ExitPolicy
from dvp_jax.exits.thresholds import ALWAYS, NEVER
from dvp_jax.report.plots import confidence_against_vocabulary, time_against_depth
from dvp_jax.runs import launch
from dvp_jax.runs.files import prepare_workdir, write_whole
from dvp_jax.t5.config import SHAPES
from dvp_jax.t5.load import Model, load_model
from dvp_jax.t5.model import init_params

METHODS = ("full", "static", "calm", "dvp")
SPREAD = 0
"""As a depth: exits spread evenly over all candidate depths, drawn token by token."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One method with its exits forced.

    Attributes:
        method: of `DecodeConfig`.
        depth: at which every token exits, or SPREAD.
        prune_size: K.
        layer_loop: of `DecodeConfig`.
        screen: of `DecodeConfig`.
        max_waiting: of `DecodeConfig`.
    """

    method: str
    depth: int
    prune_size: int = 64
    layer_loop: str = "auto"
    screen: str = "auto"
    max_waiting: int | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """Cases on one model, timed in turn.

    Attributes:
        shape: key of SHAPES, or a checkpoint.
        cases: what to time.
        vocab_size: instead of the shape's.
        batch: rows.
        source_length: tokens of a source.
        new_tokens: generated.
        dtype: of the weights.
        peers: library of `dvp_jax.bench.baselines` to time too.
    """

    shape: str
    cases: tuple[Case, ...]
    vocab_size: int | None = None
    batch: int = 1
    source_length: int = 256
    new_tokens: int = 64
    dtype: str = "float32"
    peers: str | None = None


def grid(layers: int, methods: Sequence[str], depths: Sequence[int], **fields: Any) -> tuple[Case, ...]:
    """Each method at each depth; `full` has one."""
    out = []
    for method in methods:
        for depth in (layers,) if method == "full" else depths:
            if not (method == "static" and depth == SPREAD):
                out.append(Case(method, depth, **fields))
    return tuple(out)


VOCAB_SIZES = (8_000, 32_000, 128_000, 250_000)

PRESETS: dict[str, tuple[Run, ...]] = {
    "readme": (
        Run("t5-base", grid(12, METHODS, (2, 3, 6, 9, 12, SPREAD)), peers="huggingface"),
        Run("t5-base", grid(12, ("full", "dvp"), (6,)), peers="ctranslate2"),
        *(Run("t5-base", grid(12, METHODS[1:], (6,)), vocab_size=size) for size in VOCAB_SIZES),
        *(Run("t5-base", grid(12, ("full", "dvp"), (3, 6, 12)), batch=batch, new_tokens=16) for batch in (8, 32)),
    ),
    "gpu": (
        *(
            Run(shape, grid(24, METHODS, (6, 12, 24, SPREAD)), dtype="bfloat16", peers="huggingface")
            for shape in ("t5-large", "t5-3b")
        ),
        Run(
            "t5-large",
            grid(24, ("full", "dvp"), (12,), layer_loop="cond")
            + grid(24, ("full", "dvp"), (12,), layer_loop="while"),
            dtype="bfloat16",
        ),
    ),
}

_PRESET = flags.DEFINE_enum(
    "preset", None, list(PRESETS), "Runs to make, instead of the one that the flags describe."
)
_SHAPE = flags.DEFINE_string("shape", "t5-base", f"{', '.join(SHAPES)}, or a checkpoint.")
_METHODS = flags.DEFINE_multi_enum("methods", list(METHODS), [*METHODS, "shallow_deep"], "Methods to time.")
_DEPTHS = flags.DEFINE_list("depths", None, "Exit depths; 0 for a spread. Unset: a quarter, half and all layers.")
_BATCH = flags.DEFINE_integer("batch", 1, "Rows decoded together.", lower_bound=1)
_VOCAB = flags.DEFINE_integer("vocab_size", None, "Instead of the shape's.", lower_bound=2)
_KEEP = flags.DEFINE_integer("prune_size", 64, "K.", lower_bound=1)
_SOURCE = flags.DEFINE_integer("source_length", 256, "Source tokens.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens generated.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Dtype of the weights.")
_LOOPS = flags.DEFINE_list("layer_loops", "auto", "Loops over layers to compare.")
_SCREENS = flags.DEFINE_list("screens", "auto", "Ways to read the whole vocabulary to compare.")
_WAITING = flags.DEFINE_list("max_waiting", "1", "Numbers of tokens that may wait for skipped layers, to compare.")
_PEERS = flags.DEFINE_enum("peers", None, list(peers.LIBRARIES), "Other decoders to time too, where installed.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds over all cases.", lower_bound=1)
_RESULTS = flags.DEFINE_string("results", None, "A folder for results.json and the plots.")


def exit_depths(case: Case, policy: ExitPolicy, layers: int, new_tokens: int) -> np.ndarray:
    """The depth at which each token exits."""
    if case.depth == SPREAD:
        step = layers - policy.first_exit if policy.all_or_none else 1
        return np.random.default_rng(0).choice(np.arange(policy.first_exit, layers + 1, step), new_tokens)
    return np.full(new_tokens, case.depth)


def forced(depths: np.ndarray, layers: int) -> jax.Array:
    """Thresholds by which token t exits at depths[t]."""
    passes = (np.arange(1, layers + 1) >= depths[:, None]) & (np.arange(1, layers + 1) < layers)
    return jnp.asarray(np.where(passes, ALWAYS, NEVER))


def read_bandwidth(megabytes: int = 1024, repeats: int = 7) -> float:
    """Bytes per second that a plain sum over a large array reads: the most that the device was seen to give."""
    best = 0.0
    if jax.default_backend() == "cpu":
        cores = peers.num_cores()
        parts = [np.ones(megabytes * 2**20 // 4 // cores, np.float32) for _ in range(cores)]
        size = sum(part.nbytes for part in parts)
        with ThreadPoolExecutor(cores) as pool:
            for _ in range(repeats):
                start = time.perf_counter()
                list(pool.map(np.sum, parts))
                best = max(best, size / (time.perf_counter() - start))
        return best
    array = jnp.ones(megabytes * 2**20 // 4, jnp.float32)
    total = jax.jit(jnp.sum)
    for _ in range(repeats + 1):  # the first compiles
        start = time.perf_counter()
        total(array).block_until_ready()
        best = max(best, array.nbytes / (time.perf_counter() - start))
    return best


def timed(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call in each round; all run in turn. The first, untimed round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in tqdm(range(rounds + 1), desc="timing", unit="round"):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if index:
                seconds[name].append(time.perf_counter() - start)
    return seconds


_checkpoint = lru_cache(maxsize=1)(load_model)
"""A checkpoint is read once, for its depth and for timing."""


def measure(run: Run, rounds: int) -> list[dict[str, Any]]:
    """Times the cases of a run. Returns a row for each, and for each peer."""
    if run.shape in SHAPES:
        # No end token, so that random weights generate the full length.
        config = dataclasses.replace(SHAPES[run.shape], eos_token_id=-1)
        if run.vocab_size:
            config = dataclasses.replace(config, vocab_size=run.vocab_size)
        model = Model(config, init_params(config, jax.random.key(0), jnp.dtype(run.dtype)))
    else:
        model = _checkpoint(run.shape, run.dtype)
        config = dataclasses.replace(model.config, eos_token_id=-1)
        model = dataclasses.replace(model, config=config)
    layers = config.num_decoder_layers
    ids = np.random.default_rng(0).integers(3, config.vocab_size, (run.batch, run.source_length))
    encoded = jax.block_until_ready(encode(model, ids, np.ones_like(ids)))
    start = time.perf_counter()
    jax.block_until_ready(encode(model, ids, np.ones_like(ids)))
    encoder_ms = 1e3 * (time.perf_counter() - start)

    rows: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    programs: dict[Any, Any] = {}
    for case in tqdm(run.cases, desc="compiling", unit="case"):
        fields: dict[str, Any] = {"static_exit_layer": case.depth} if case.method == "static" else {}
        if case.method == "shallow_deep" and case.depth not in (SPREAD, layers):
            fields = {"min_exit_layer": case.depth}
        cfg = DecodeConfig(
            method=case.method,
            max_new_tokens=run.new_tokens,
            prune_size=case.prune_size,
            layer_loop=case.layer_loop,
            screen=case.screen,
            max_waiting=case.max_waiting,
            **fields,
        )
        policy = cfg.policy(layers, config.vocab_size)
        depths = exit_depths(case, policy, layers, run.new_tokens)
        thresholds = forced(depths, layers)
        if cfg not in programs:
            lowered, arguments = lower_decode(model, encoded, cfg, thresholds)
            start = time.perf_counter()
            programs[cfg] = lowered.compile(), arguments[:-1], time.perf_counter() - start
        program, arguments, compile_s = programs[cfg]
        account = program.memory_analysis()
        screened = cfg.screens(jax.default_backend(), encoded.active.shape[0])
        must_read = bytes_per_token(
            depths,
            policy,
            config,
            source_length=run.source_length,
            new_tokens=run.new_tokens,
            batch=run.batch,
            itemsize=jnp.dtype(run.dtype).itemsize,
            screened=screened,
            window=cfg.window,
        )
        name = " ".join(str(value) for value in dataclasses.astuple(case))
        rows[name] = {
            **dataclasses.asdict(case),
            "mean_depth": float(depths.mean()),
            "screened": screened,
            "megabytes": float(must_read.mean() / 1e6),
            "compile_s": compile_s,
            "peak_megabytes": (account.argument_size_in_bytes + account.temp_size_in_bytes) / 1e6,
            "argument_megabytes": account.argument_size_in_bytes / 1e6,
        }
        calls[name] = partial(program, *arguments, thresholds)

    failed: list[dict[str, Any]] = []
    if run.peers:
        full = next((name for name, row in rows.items() if row["method"] == "full"), None)
        ours = np.asarray(calls[full]().tokens) if full else None
        for name, found in peers.peers(run.peers, model, ids, run.new_tokens).items():
            if isinstance(found, str):
                failed.append({"method": name, "error": found})
                continue
            peer, tokens = found
            rows[name] = {"method": name, "depth": layers, "mean_depth": float(layers)}
            if ours is not None:
                rows[name]["tokens_as_full"] = float(np.mean(ours == np.asarray(tokens)))
            calls[name], calls[f"{name}, encoder"] = peer.decode, peer.encode

    seconds = timed(calls, rounds)
    for name, row in rows.items():
        besides = statistics.median(seconds.get(f"{name}, encoder", [0.0]))
        ms = [1e3 * (value - besides) / run.new_tokens for value in seconds[name]]
        row |= {
            "ms_per_token": statistics.median(ms),
            "least_ms": min(ms),
            "most_ms": max(ms),
            "tokens_per_s": 1e3 * run.batch / statistics.median(ms),
        }
        if "megabytes" in row:
            row["encoder_ms"] = encoder_ms
    return [*rows.values(), *failed]


def add_bounds(rows: list[dict[str, Any]], bandwidth: float) -> None:
    """Notes in our rows what memory allows at `bandwidth` bytes per second, and how near to it they come."""
    for row in rows:
        if "megabytes" in row:
            row["bound_ms"] = row["megabytes"] * 1e9 / bandwidth
            row["efficiency"] = row["bound_ms"] / row["ms_per_token"]


def table(run: Run, rows: list[dict[str, Any]]) -> str:
    """The rows of a run, as Markdown."""
    base = next((row["ms_per_token"] for row in rows if row["method"] == "full"), None)
    vocabulary = f", vocabulary {run.vocab_size:,}" if run.vocab_size else ""
    lines = [
        f"{run.shape}, {run.dtype}, batch {run.batch}, source {run.source_length}{vocabulary}",
        "",
        "| method | exit | ms/token | least to most | speed-up | MB/token | efficiency | compile s | peak MB |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    ours = [row for row in rows if "screen" in row]
    fields = ("layer_loop", "screen", "prune_size", "max_waiting")
    varied = [field for field in fields if len({row[field] for row in ours}) > 1]
    for row in rows:
        name = " ".join([row["method"], *(f"{field} {row[field]}" for field in varied if field in row)])
        if "error" in row:
            lines.append(f"| {name} | not run: {row['error']} | | | | | | | |")
            continue
        speed_up = f"{base / row['ms_per_token']:.2f}x" if base else ""
        cells = [
            name,
            f"{row['mean_depth']:.1f} spread" if row["depth"] == SPREAD else str(row["depth"]),
            f"{row['ms_per_token']:.2f}",
            f"{row['least_ms']:.2f} to {row['most_ms']:.2f}",
            speed_up,
            *(f"{row[key]:{form}}" if key in row else "" for key, form in _COLUMNS.items()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


_COLUMNS = {"megabytes": ".0f", "efficiency": ".2f", "compile_s": ".1f", "peak_megabytes": ".0f"}


def main() -> None:
    """Runs the benchmark."""
    if _PRESET.value:
        runs = PRESETS[_PRESET.value]
    else:
        layers = SHAPES[_SHAPE.value].num_decoder_layers if _SHAPE.value in SHAPES else None
        layers = layers or _checkpoint(_SHAPE.value, _DTYPE.value).config.num_decoder_layers
        depths = [int(depth) for depth in _DEPTHS.value or (layers, layers // 2, layers // 4)]
        if not all(depth == SPREAD or 2 <= depth <= layers for depth in depths):
            raise ValueError(f"depths is {depths}; allowed: from 2 to {layers}, or {SPREAD} for a spread")
        cases: tuple[Case, ...] = ()
        for loop in _LOOPS.value:
            for screen in _SCREENS.value:
                for waiting in map(int, _WAITING.value):
                    fields = {"layer_loop": loop, "screen": screen, "max_waiting": waiting}
                    cases += grid(layers, _METHODS.value, depths, prune_size=_KEEP.value, **fields)
        runs = (
            Run(
                _SHAPE.value,
                cases,
                _VOCAB.value,
                _BATCH.value,
                _SOURCE.value,
                _TOKENS.value,
                _DTYPE.value,
                _PEERS.value,
            ),
        )

    output = prepare_workdir(_RESULTS.value) if _RESULTS.value else None
    bandwidth = read_bandwidth()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    report: dict[str, Any] = {
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "backend": jax.default_backend(),
        "runs": [],
    }
    for run in runs:
        rows = measure(run, _ROUNDS.value)
        bandwidth = max(bandwidth, read_bandwidth())  # other work on the machine may have slowed the first
        add_bounds(rows, bandwidth)
        print(f"\n{table(run, rows)}\n\nThe machine reads {bandwidth / 1e9:.1f} GB/s.", flush=True)
        setting = {key: value for key, value in dataclasses.asdict(run).items() if key != "cases"}
        report["runs"].append({**setting, "bandwidth": bandwidth, "rows": rows})
    if output:
        write_whole(output / "results.json", [json.dumps(report, indent=2) + "\n"])
        time_against_depth(report["runs"][0]["rows"], output / "time_against_depth.svg")
        if any(run["vocab_size"] for run in report["runs"]):
            confidence_against_vocabulary(report["runs"], output / "confidence_against_vocabulary.svg")


if __name__ == "__main__":
    launch.run(main)
