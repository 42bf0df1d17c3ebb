"""Runs benchmarks in processes of their own, so that one that hangs or dies takes no other with it."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import jax

from dvp_jax.bench.baselines import describe
from dvp_jax.bench.cases import Benchmark, Preset
from dvp_jax.bench.results import Results
from dvp_jax.bench.timing import Measurement, run_benchmark

Run = Callable[[Benchmark, int], Iterator[Measurement]]

_INHERITED = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
)
"""JAX's settings that the launcher makes and a new process would not have."""


class BenchmarkError(Exception):
    """A benchmark's process ended before the benchmark did. The message says why."""


def run_preset(preset: Preset, rounds: int, folder: str | Path | None, run: Run = run_benchmark) -> None:
    """Runs benchmarks one after the other, each in a process of its own.

    Rows are printed and written as they come. If a benchmark fails, hangs or is killed, its other rows say so, and
    the next benchmark runs.

    Args:
        preset: the benchmarks, and how long they may take.
        rounds: timed rounds of each.
        folder: where results.json and the plots go; None to write nothing.
        run: what runs a benchmark there, a function that can be pickled.

    Raises:
        ValueError: the path of the folder is empty.
        OSError: the folder cannot be written.
    """
    results = Results(folder)
    end = float("inf") if preset.total_s is None else time.monotonic() + preset.total_s
    for benchmark in preset.benchmarks:
        results.start(benchmark)
        seconds = min(preset.benchmark_s, end - time.monotonic())
        try:
            if seconds <= 0:
                raise BenchmarkError(f"the {preset.total_s:.0f} s of the preset are over")
            for measurement in measurements(benchmark, rounds, seconds, run):
                results.add(measurement)
        except BenchmarkError as error:
            results.fail(str(error))
        results.finish()
    results.plot()


def measurements(benchmark: Benchmark, rounds: int, seconds: float, run: Run) -> Iterator[Measurement]:
    """Runs a benchmark in a process of its own.

    Args:
        benchmark: the benchmark.
        rounds: timed rounds.
        seconds: after which the process is killed, with all processes that it has started.
        run: what runs the benchmark there.

    Yields:
        What `run` yields, as soon as it does.

    Raises:
        BenchmarkError: the benchmark failed, or its process was killed or died.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit the state of a device that was used
    receiver, sender = context.Pipe(duplex=False)
    settings = {name: getattr(jax.config, name) for name in _INHERITED}
    process = context.Process(target=_send_measurements, args=(sender, settings, benchmark, rounds, run))
    end = time.monotonic() + seconds
    process.start()
    sender.close()  # so that the pipe ends when the process does
    try:
        while True:
            if not receiver.poll(max(0.0, end - time.monotonic())):
                raise BenchmarkError(f"killed after {seconds:.0f} s")
            try:
                message: Measurement | str | None = receiver.recv()
            except EOFError:
                process.join()
                raise BenchmarkError(_reason(process.exitcode or 0)) from None
            if message is None:
                return
            if isinstance(message, str):
                raise BenchmarkError(message)
            yield message
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has not made its group yet, or all of it has ended
            os.killpg(process.ident or 0, signal.SIGKILL)
        process.kill()
        process.join()
        receiver.close()


def _reason(exit_code: int) -> str:
    if exit_code < 0:
        return f"its process was killed by {signal.Signals(-exit_code).name}"
    return f"its process ended with status {exit_code}"


def _send_measurements(
    sender: Connection, settings: dict[str, object], benchmark: Benchmark, rounds: int, run: Run
) -> None:
    """The main function of the process. After the last measurement it sends None, or why there is none."""
    os.setsid()  # leads a group: what it starts, such as PyTorch's compilers, is killed with it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for name, value in settings.items():
        jax.config.update(name, value)
    try:
        for measurement in run(benchmark, rounds):
            sender.send(measurement)
        sender.send(None)
    except (ValueError, OSError, ImportError) as error:
        sender.send(str(error))
    except Exception as error:
        traceback.print_exc()
        sender.send(describe(error))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.killpg(0, signal.SIGKILL)
