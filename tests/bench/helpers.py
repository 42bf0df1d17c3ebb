"""What a benchmark's process runs in the tests of presets, instead of a device that hangs or is full."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator

from dvp_jax.bench.cases import Benchmark
from dvp_jax.bench.timing import Measurement, run_benchmark

HANGS, DIES = 2, 3
"""Batch sizes that say what a benchmark does after its first row."""


def fake_row(benchmark: Benchmark) -> Measurement:
    """The first case of a benchmark, with times that are made up."""
    times = {"ms_per_token": 0.5, "least_ms": 0.4, "most_ms": 0.6, "mean_depth": 4.0}
    return Measurement(dataclasses.asdict(benchmark.cases[0]) | times, "gpu", "a card", 4e12)


def run(benchmark: Benchmark, rounds: int) -> Iterator[Measurement]:
    """Runs a benchmark as it is, or does what its batch size says."""
    if benchmark.batch == 1:
        yield from run_benchmark(benchmark, rounds)
        return
    yield fake_row(benchmark)
    if benchmark.batch == HANGS:
        time.sleep(10_000)
    os.kill(os.getpid(), signal.SIGKILL)  # as Linux does when memory is short
