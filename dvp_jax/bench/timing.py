"""Milliseconds per token with forced exits, beside the bound that memory bandwidth sets."""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from dvp_jax.bench.bandwidth import read_bandwidth
from dvp_jax.bench.baselines import baselines
from dvp_jax.bench.cases import SPREAD, Benchmark, Case, exit_depths, forcing_thresholds, make_model
from dvp_jax.decode.api import encode, lower_decode
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.program import DecodeInputs, Encoded
from dvp_jax.exits.cost import bytes_per_token
from dvp_jax.report.plots import confidence_against_vocabulary, time_against_depth
from dvp_jax.report.table import Table
from dvp_jax.runs.files import prepare_workdir, write_whole
from dvp_jax.t5.load import Model

_Key = TypeVar("_Key")

Row = dict[str, Any]
"""One line of the table, and one entry of results.json."""


@dataclasses.dataclass(frozen=True)
class TimedDecoder:
    """A decoder to time.

    Attributes:
        row: what is known of it before it is timed.
        decode: decodes the whole batch once.
        encode: does the part of `decode` that is not decoding; None where there is no such part.
    """

    row: Row
    decode: Callable[[], Any]
    encode: Callable[[], Any] | None = None


class CompiledDecode(NamedTuple):
    """A compiled decode program."""

    program: jax.stages.Compiled
    inputs: DecodeInputs  # its argument; each case replaces the thresholds in it
    seconds: float  # that compiling took


def run_benchmarks(benchmarks: Sequence[Benchmark], rounds: int, folder: str | Path | None) -> None:
    """Runs benchmarks one after the other and prints their tables.

    Args:
        benchmarks: the benchmarks.
        rounds: timed rounds of each.
        folder: where results.json and the plots go; None to write nothing.

    Raises:
        ValueError: a case that does not fit the model, or an empty path of the folder.
        OSError: a checkpoint is missing, or the folder cannot be written.
    """
    folder = None if folder is None else prepare_workdir(folder)
    bandwidth = read_bandwidth()
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}")
    runs: list[Row] = []
    for benchmark in benchmarks:
        rows = measure(benchmark, rounds)
        # Measured again, and the highest one kept: other work on the machine may have slowed the first.
        bandwidth = max(bandwidth, read_bandwidth())
        add_bounds(rows, bandwidth)
        print(f"\n{heading(benchmark)}\n\n{benchmark_table(rows).markdown()}\n")
        print(f"The machine reads {bandwidth / 1e9:.1f} GB/s.", flush=True)
        settings = {name: value for name, value in dataclasses.asdict(benchmark).items() if name != "cases"}
        runs.append({**settings, "bandwidth": bandwidth, "rows": rows})
    if folder:
        report = {
            "versions": {"jax": jax.__version__, "python": platform.python_version()},
            "backend": jax.default_backend(),
            "runs": runs,
        }
        write_whole(folder / "results.json", [json.dumps(report, indent=2) + "\n"])
        time_against_depth(runs[0]["rows"], folder / "time_against_depth.svg")
        if any(run["vocab_size"] for run in runs):
            confidence_against_vocabulary(runs, folder / "confidence_against_vocabulary.svg")


def measure(benchmark: Benchmark, rounds: int) -> list[Row]:
    """Times the cases and the baselines of a benchmark.

    Args:
        benchmark: the benchmark.
        rounds: timed rounds.

    Returns:
        A row for each case, then for each baseline. "ms_per_token" is the median of the rounds, "least_ms" and
        "most_ms" their range; a baseline that cannot run has "method" and "error" only.

    Raises:
        ValueError: a case that does not fit the model.
        OSError: the checkpoint is missing.
    """
    model = make_model(benchmark)
    shape = benchmark.batch, benchmark.source_length
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, shape)
    encoded, encoder_ms = time_encoder(model, ids)
    decoders = compile_cases(benchmark, model, encoded)
    failures: list[Row] = []
    if benchmark.baselines:
        full = next((decoder for decoder in decoders if decoder.row["method"] == "full"), None)
        full_tokens = np.asarray(full.decode().tokens) if full else None
        baseline_decoders, failures = make_baselines(benchmark, model, ids, full_tokens)
        decoders += baseline_decoders
    rows = time_decoders(decoders, rounds, benchmark)
    for row in rows:
        if "megabytes" in row:
            row["encoder_ms"] = encoder_ms
    return [*rows, *failures]


def time_encoder(model: Model, ids: np.ndarray) -> tuple[Encoded, float]:
    """Encodes (batch, source) token ids. Returns what `encode` does, and the milliseconds that it took."""

    def run() -> Encoded:
        return jax.block_until_ready(encode(model, ids, np.ones_like(ids)))

    run()  # compiles
    start = time.perf_counter()
    encoded = run()
    return encoded, 1e3 * (time.perf_counter() - start)


def compile_cases(benchmark: Benchmark, model: Model, encoded: Encoded) -> list[TimedDecoder]:
    """Compiles each case. Cases that differ in their exits alone share a program.

    Args:
        benchmark: the benchmark.
        model: its model.
        encoded: its sources.

    Raises:
        ValueError: a case that does not fit the model.
    """
    compiled: dict[DecodeConfig, CompiledDecode] = {}
    decoders = []
    for case in tqdm(benchmark.cases, desc="compiling", unit="case"):
        cfg = case.config(model.config.num_decoder_layers, benchmark.new_tokens)
        if cfg not in compiled:
            compiled[cfg] = compile_decode(model, encoded, cfg)
        decoders.append(forced_decoder(case, cfg, compiled[cfg], benchmark, model))
    return decoders


def compile_decode(model: Model, encoded: Encoded, cfg: DecodeConfig) -> CompiledDecode:
    """Compiles the decode program of a config.

    Args:
        model: the model.
        encoded: the sources.
        cfg: how to decode.

    Raises:
        ValueError: cfg does not fit the model.
    """
    lowered, inputs = lower_decode(model, encoded, cfg)
    start = time.perf_counter()
    program = lowered.compile()
    return CompiledDecode(program, inputs, time.perf_counter() - start)


def forced_decoder(
    case: Case, cfg: DecodeConfig, compiled: CompiledDecode, benchmark: Benchmark, model: Model
) -> TimedDecoder:
    """The decoder of a case, whose row says what it must read and what memory it needs.

    Args:
        case: the case.
        cfg: its config.
        compiled: the program of the config.
        benchmark: the benchmark that the case belongs to.
        model: the model.
    """
    num_layers = model.config.num_decoder_layers
    policy = cfg.policy(num_layers, model.config.vocab_size)
    depths = exit_depths(case.depth, policy, num_layers, benchmark.new_tokens)
    int8_unembedding = cfg.reads_int8(policy, jax.default_backend(), benchmark.batch)
    must_read = bytes_per_token(
        depths,
        policy,
        model.config,
        source_length=benchmark.source_length,
        new_tokens=benchmark.new_tokens,
        batch=benchmark.batch,
        itemsize=jnp.dtype(benchmark.dtype).itemsize,
        int8_unembedding=int8_unembedding,
    )
    memory = compiled.program.memory_analysis()
    assert memory is not None  # every backend of JAX gives it
    row = {
        **dataclasses.asdict(case),
        "mean_depth": float(depths.mean()),
        "int8_unembedding": int8_unembedding,
        "megabytes": float(must_read.mean() / 1e6),
        "compile_s": compiled.seconds,
        "peak_megabytes": (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6,
        "argument_megabytes": memory.argument_size_in_bytes / 1e6,
    }
    inputs = dataclasses.replace(compiled.inputs, thresholds=forcing_thresholds(depths, num_layers))
    return TimedDecoder(row, partial(compiled.program, inputs))


def make_baselines(
    benchmark: Benchmark, model: Model, ids: np.ndarray, full_tokens: np.ndarray | None
) -> tuple[list[TimedDecoder], list[Row]]:
    """The decoders of the benchmark's other library.

    Args:
        benchmark: a benchmark with `baselines`.
        model: its model.
        ids: (batch, source) token ids.
        full_tokens: (batch, new_tokens) ids that method "full" generates, to compare with; None if it is no case.

    Returns:
        The decoders, and a row with "method" and "error" for each one that cannot run.
    """
    assert benchmark.baselines is not None
    decoders, failures = [], []
    for name, result in baselines(benchmark.baselines, model, ids, benchmark.new_tokens).items():
        if isinstance(result, str):
            failures.append({"method": name, "error": result})
            continue
        baseline, tokens = result
        num_layers = model.config.num_decoder_layers
        row: Row = {"method": name, "depth": num_layers, "mean_depth": float(num_layers)}
        if full_tokens is not None:
            row["tokens_as_full"] = float(np.mean(full_tokens == np.asarray(tokens)))
        decoders.append(TimedDecoder(row, baseline.decode, baseline.encode))
    return decoders, failures


def time_decoders(decoders: Sequence[TimedDecoder], rounds: int, benchmark: Benchmark) -> list[Row]:
    """Times decoders in turn. Returns their rows with "ms_per_token", "least_ms", "most_ms" and "tokens_per_s"."""
    calls: dict[tuple[int, str], Callable[[], Any]] = {}
    for index, decoder in enumerate(decoders):
        calls[index, "decode"] = decoder.decode
        if decoder.encode:
            calls[index, "encode"] = decoder.encode
    seconds = time_in_turn(calls, rounds)
    rows = []
    for index, decoder in enumerate(decoders):
        encode_s = statistics.median(seconds.get((index, "encode"), [0.0]))
        ms = [1e3 * (value - encode_s) / benchmark.new_tokens for value in seconds[index, "decode"]]
        times = {
            "ms_per_token": statistics.median(ms),
            "least_ms": min(ms),
            "most_ms": max(ms),
            "tokens_per_s": 1e3 * benchmark.batch / statistics.median(ms),
        }
        rows.append(decoder.row | times)
    return rows


def time_in_turn(calls: Mapping[_Key, Callable[[], Any]], rounds: int) -> dict[_Key, list[float]]:
    """Times calls in turn, A B A B, so that other work on the machine slows all of them alike.

    Args:
        calls: the calls; each returns arrays, which are waited for, or anything else.
        rounds: timed rounds, after one to warm up.

    Returns:
        The seconds of each call in each round.
    """
    seconds: dict[_Key, list[float]] = {key: [] for key in calls}
    for index in tqdm(range(rounds + 1), desc="timing", unit="round"):
        for key, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            if index:
                seconds[key].append(time.perf_counter() - start)
    return seconds


def add_bounds(rows: Sequence[Row], bandwidth: float) -> None:
    """Adds to the rows of cases the least time that memory allows, and how near to it the time is.

    Args:
        rows: from `measure`. They get "bound_ms", the least time in which a token's bytes can be read, and
            "efficiency", which is that time divided by "ms_per_token".
        bandwidth: bytes per second.
    """
    for row in rows:
        if "megabytes" in row:
            row["bound_ms"] = row["megabytes"] * 1e9 / bandwidth
            row["efficiency"] = row["bound_ms"] / row["ms_per_token"]


def heading(benchmark: Benchmark) -> str:
    """One line that describes a benchmark."""
    vocabulary = f", vocabulary {benchmark.vocab_size:,}" if benchmark.vocab_size else ""
    source = f"batch {benchmark.batch}, source {benchmark.source_length}"
    return f"{benchmark.shape}, {benchmark.dtype}, {source}{vocabulary}"


_HEAD = (
    "method",
    "exit",
    "ms/token",
    "least to most",
    "speed-up",
    "MB/token",
    "efficiency",
    "compile s",
    "peak MB",
)
_FORMATS = {"megabytes": ".0f", "efficiency": ".2f", "compile_s": ".1f", "peak_megabytes": ".0f"}
_SETTINGS = ("branch_every", "unembedding", "prune_size", "max_waiting")


def benchmark_table(rows: Sequence[Row]) -> Table:
    """The rows of `measure`, with bounds, as a table. Speed-up is against method "full"."""
    full_ms = next((row["ms_per_token"] for row in rows if row["method"] == "full"), None)
    cases = [row for row in rows if "unembedding" in row]
    varied = [name for name in _SETTINGS if len({row[name] for row in cases} - {None}) > 1]
    lines = []
    for row in rows:
        settings = [f"{name} {row[name]}" for name in varied if row.get(name) is not None]
        method = " ".join([row["method"], *settings])
        if "error" in row:
            lines.append([method, f"not run: {row['error']}", *[""] * (len(_HEAD) - 2)])
            continue
        lines.append(
            [
                method,
                f"{row['mean_depth']:.1f} spread" if row["depth"] == SPREAD else str(row["depth"]),
                f"{row['ms_per_token']:.2f}",
                f"{row['least_ms']:.2f} to {row['most_ms']:.2f}",
                f"{full_ms / row['ms_per_token']:.2f}x" if full_ms else "",
                *(f"{row[name]:{form}}" if name in row else "" for name, form in _FORMATS.items()),
            ]
        )
    return Table(_HEAD, lines)
