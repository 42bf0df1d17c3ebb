"""Milliseconds per token with forced exits, beside the bound that memory bandwidth sets."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from dvp_jax.bench.bandwidth import num_cores, read_bandwidth
from dvp_jax.bench.baselines import describe, start_baselines
from dvp_jax.bench.cases import Benchmark, Case, forced_depths, forcing_thresholds, make_model, model_config
from dvp_jax.bench.device_program import count_token, parse
from dvp_jax.decode.api import decode_arguments, encode, lower_decode
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.layer_loop import grouped
from dvp_jax.decode.program import DecodeInputs, DecodeProgram, Encoded
from dvp_jax.exits.cost import bytes_per_token
from dvp_jax.t5.load import Model

_Key = TypeVar("_Key")

Row = dict[str, Any]
"""One line of the table, and one entry of results.json."""


class Measurement(NamedTuple):
    """A row of a benchmark, and where it was measured."""

    row: Row
    backend: str  # of JAX
    device: str  # its kind, as JAX names it
    bandwidth: float  # bytes per second


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

    program: DecodeProgram  # what it was compiled for
    compiled: jax.stages.Compiled
    inputs: DecodeInputs  # its argument; each case replaces the thresholds in it
    seconds: float  # that compiling took


def run_benchmark(benchmark: Benchmark, rounds: int) -> Iterator[Measurement]:
    """Times the cases and the baselines of a benchmark, and compares them with the bound and with "full".

    Args:
        benchmark: the benchmark.
        rounds: timed rounds.

    Yields:
        The rows of `measure`, as soon as they are measured, with the fields that `add_comparisons` adds.

    Raises:
        ValueError: a case that does not fit the model.
        OSError: the checkpoint is missing.
    """
    backend, device = jax.default_backend(), jax.devices()[0].device_kind
    bandwidth = read_bandwidth()
    rows: Iterable[Row] = measure(benchmark, rounds)
    if backend == "cpu":
        rows = list(rows)
        # Measured again, and the highest one kept: other work on the machine may have slowed the first.
        bandwidth = max(bandwidth, read_bandwidth())
    full_ms = None
    for row in rows:
        if row["method"] == "full" and full_ms is None:
            full_ms = row.get("ms_per_token")
        add_comparisons(row, bandwidth, full_ms)
        yield Measurement(row, backend, device, bandwidth)


def measure(benchmark: Benchmark, rounds: int) -> Iterator[Row]:
    """Times the cases and the baselines of a benchmark.

    On a CPU they are timed in turn, and all rows come at the end. On a GPU or TPU, which nothing else slows, each
    is timed alone after all are compiled. One that hangs there loses no row of an earlier one.

    Args:
        benchmark: the benchmark.
        rounds: timed rounds.

    Yields:
        A row for each case, and for each baseline. "ms_per_token" is the median of the rounds, "least_ms" and
        "most_ms" their range. What cannot run, for lack of memory for example, has an "error" instead.

    Raises:
        ValueError: a case that does not fit the model.
        OSError: the checkpoint is missing.
    """
    config = model_config(benchmark)
    configs = [case.config(config.num_decoder_layers, benchmark.new_tokens) for case in benchmark.cases]
    for cfg in configs:
        cfg.policy(config.num_decoder_layers, config.vocab_size)  # refuses bad settings before time is spent
    start = time.perf_counter()
    model = make_model(benchmark)
    jax.block_until_ready(model.params)
    load_s = time.perf_counter() - start
    ids = np.random.default_rng(0).integers(3, model.config.vocab_size, (benchmark.batch, benchmark.source_length))
    encoded, encoder_times = time_encoder(model, ids)
    compiled = compile_all(model, encoded, configs)

    def decoders() -> Iterator[TimedDecoder | Row]:
        full_tokens = None
        for case, cfg in zip(benchmark.cases, configs, strict=True):
            program = compiled[cfg]
            if isinstance(program, str):
                yield {**dataclasses.asdict(case), "error": program}
                continue
            decoder = forced_decoder(case, cfg, program, benchmark, model)
            decoder.row.update(encoder_times, load_s=load_s)
            yield decoder
            if benchmark.baselines and case.method == "full" and full_tokens is None:
                full_tokens = np.asarray(decoder.decode().tokens)
        if benchmark.baselines:
            yield from baseline_decoders(benchmark, model, ids, full_tokens)

    if jax.default_backend() == "cpu":
        yield from time_decoders(list(decoders()), rounds, benchmark)
        return
    for decoder in decoders():
        yield from time_decoders([decoder], rounds, benchmark)


def time_encoder(model: Model, ids: np.ndarray) -> tuple[Encoded, Row]:
    """Encodes (batch, source) token ids.

    Returns:
        What `encode` does, and "encoder_ms" with "encoder_compile_s", the seconds of the first run less those of
        the second.
    """

    def run() -> tuple[Encoded, float]:
        start = time.perf_counter()
        encoded = jax.block_until_ready(encode(model, ids, np.ones_like(ids)))
        return encoded, time.perf_counter() - start

    _, first_s = run()  # compiles
    encoded, second_s = run()
    return encoded, {"encoder_ms": 1e3 * second_s, "encoder_compile_s": max(first_s - second_s, 0.0)}


def compile_all(
    model: Model, encoded: Encoded, configs: Sequence[DecodeConfig]
) -> dict[DecodeConfig, CompiledDecode | str]:
    """Compiles the decode program of each config: on a CPU one after the other, else in several threads.

    Args:
        model: the model.
        encoded: the sources.
        configs: how to decode; each is compiled once.

    Returns:
        For each config, its program, or why it cannot be compiled.

    Raises:
        ValueError: a config does not fit the model.
    """

    def compile_lowered(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, float]:
        start = time.perf_counter()
        return lowered.compile(), time.perf_counter() - start

    # On a CPU the threads of two compilers would take each other's cores.
    workers = 1 if jax.default_backend() == "cpu" else max(1, num_cores() // 2)
    lowered: dict[DecodeConfig, tuple[DecodeProgram, DecodeInputs]] = {}
    futures: dict[DecodeConfig, Future[tuple[jax.stages.Compiled, float]]] = {}
    with ThreadPoolExecutor(workers) as pool:
        for cfg in tqdm(dict.fromkeys(configs), desc="tracing", unit="program"):
            program, _ = decode_arguments(model, encoded, cfg)
            traced, inputs = lower_decode(model, encoded, cfg)
            lowered[cfg] = program, inputs
            futures[cfg] = pool.submit(compile_lowered, traced)
    compiled: dict[DecodeConfig, CompiledDecode | str] = {}
    for cfg, future in tqdm(futures.items(), desc="compiling", unit="program"):
        try:
            executable, seconds = future.result()
            compiled[cfg] = CompiledDecode(lowered[cfg][0], executable, lowered[cfg][1], seconds)
        except RuntimeError as error:  # of JAX: out of memory, for example
            compiled[cfg] = describe(error)
    return compiled


def forced_decoder(
    case: Case, cfg: DecodeConfig, compiled: CompiledDecode, benchmark: Benchmark, model: Model
) -> TimedDecoder:
    """The decoder of a case, whose row says what it must read, its kernels, and what memory it needs.

    Args:
        case: the case.
        cfg: its config.
        compiled: the program of the config.
        benchmark: the benchmark that the case belongs to.
        model: the model.
    """
    policy = compiled.program.policy
    depths = forced_depths(case.depth, policy, benchmark.new_tokens)
    int8_unembedding = cfg.reads_int8(policy, model.config, jax.default_backend(), benchmark.batch)
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
    row = {
        **dataclasses.asdict(case),
        "mean_depth": float(depths.mean()),
        "int8_unembedding": int8_unembedding,
        "megabytes": float(must_read.mean() / 1e6),
        "compile_s": compiled.seconds,
        "kernels": kernels_per_token(compiled, depths),
    }
    memory = compiled.compiled.memory_analysis()
    if memory is not None:  # None for programs of some backends that come from the compile cache
        row["peak_megabytes"] = (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6
        row["argument_megabytes"] = memory.argument_size_in_bytes / 1e6
    thresholds = forcing_thresholds(depths, model.config.num_decoder_layers)
    inputs = dataclasses.replace(compiled.inputs, settings=compiled.inputs.settings.with_thresholds(thresholds))
    return TimedDecoder(row, partial(compiled.compiled, inputs))


def kernels_per_token(compiled: CompiledDecode, depths: Int[np.ndarray, " tokens"]) -> float | None:
    """How many kernels a token takes on average; None where that is not known.

    It is known on a GPU or TPU for programs that run layers until every row has exited.

    Args:
        compiled: the program.
        depths: the exit depth of each token.
    """
    policy = compiled.program.policy
    if jax.default_backend() == "cpu" or policy.loop != "early_exit":
        return None
    text = compiled.compiled.as_text()
    if not text:
        return None
    deeper = range(policy.first_exit + 1, policy.last_depth + 1)
    starts = [group[0] for group in grouped(deeper, policy.candidates, compiled.program.branch_every)]
    try:
        hlo = parse(text)
        counts = {int(depth): count_token(hlo, int(depth), starts).kernels.total() for depth in set(depths)}
    except (ValueError, LookupError):  # XLA gave the program another form
        return None
    return statistics.fmean(counts[int(depth)] for depth in depths)


def baseline_decoders(
    benchmark: Benchmark, model: Model, ids: np.ndarray, full_tokens: np.ndarray | None
) -> Iterator[TimedDecoder | Row]:
    """The decoders of the benchmark's other library, each made when it is asked for.

    Args:
        benchmark: a benchmark with `baselines`.
        model: its model.
        ids: (batch, source) token ids.
        full_tokens: (batch, new_tokens) ids that method "full" generates, to compare with; None if it is no case.

    Yields:
        The decoders, and a row with "method" and "error" for each one that cannot run.
    """
    assert benchmark.baselines is not None
    num_layers = model.config.num_decoder_layers
    for name, baseline, tokens, error in start_baselines(benchmark.baselines, model, ids, benchmark.new_tokens):
        if baseline is None:
            yield {"method": name, "error": error}
            continue
        row: Row = {"method": name, "depth": num_layers, "mean_depth": float(num_layers)}
        if full_tokens is not None:
            row["tokens_as_full"] = float(np.mean(full_tokens == np.asarray(tokens)))
        yield TimedDecoder(row, baseline.decode, baseline.encode)


def time_decoders(decoders: Sequence[TimedDecoder | Row], rounds: int, benchmark: Benchmark) -> list[Row]:
    """Times decoders in turn.

    Args:
        decoders: the decoders, and rows of those that cannot run.
        rounds: timed rounds.
        benchmark: what they decode.

    Returns:
        The rows in the order of `decoders`, with "ms_per_token", "least_ms", "most_ms" and "tokens_per_s", or with
        the "error" of a decoder that fails.
    """
    calls: dict[tuple[int, str], Callable[[], Any]] = {}
    for index, decoder in enumerate(decoders):
        if isinstance(decoder, TimedDecoder):
            calls[index, "decode"] = decoder.decode
            if decoder.encode:
                calls[index, "encode"] = decoder.encode
    seconds, errors = time_in_turn(calls, rounds)
    rows = []
    for index, decoder in enumerate(decoders):
        if not isinstance(decoder, TimedDecoder):
            rows.append(decoder)
            continue
        error = errors.get((index, "decode")) or errors.get((index, "encode"))
        if error:
            rows.append(decoder.row | {"error": error})
            continue
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


def time_in_turn(
    calls: Mapping[_Key, Callable[[], Any]], rounds: int
) -> tuple[dict[_Key, list[float]], dict[_Key, str]]:
    """Times calls in turn, A B A B, so that other work on the machine slows all of them alike.

    Args:
        calls: the calls; each returns arrays, which are waited for, or anything else.
        rounds: timed rounds, after one to warm up.

    Returns:
        The seconds of each call in each round, and why calls failed. A call that failed is not tried again.
    """
    seconds: dict[_Key, list[float]] = {key: [] for key in calls}
    errors: dict[_Key, str] = {}
    for index in tqdm(range(rounds + 1), desc="timing", unit="round"):
        for key, call in calls.items():
            if key in errors:
                continue
            start = time.perf_counter()
            try:
                jax.block_until_ready(call())
            except (RuntimeError, MemoryError) as error:
                errors[key] = describe(error)
                continue
            if index:
                seconds[key].append(time.perf_counter() - start)
    return seconds, errors


def add_comparisons(row: Row, bandwidth: float, full_ms: float | None) -> None:
    """Adds how near a time is to the bound of memory and to the full model.

    Args:
        row: from `measure`. Where it has a time, it gets "speedup", how many times as fast as "full" it is. A row
            of a case gets "bound_ms", the least time in which a token's bytes can be read, and "efficiency", which
            is that time divided by "ms_per_token".
        bandwidth: bytes per second.
        full_ms: milliseconds per token of "full"; None if it is no case or failed.
    """
    if "ms_per_token" not in row:
        return
    if full_ms is not None:
        row["speedup"] = full_ms / row["ms_per_token"]
    if "megabytes" in row:
        row["bound_ms"] = row["megabytes"] * 1e9 / bandwidth
        row["efficiency"] = row["bound_ms"] / row["ms_per_token"]
