"""Timing: a case that fails is a row, and rows come as soon as they are measured."""

import jax
import numpy as np
import pytest

from dvp_jax.bench import timing
from dvp_jax.bench.cases import Benchmark, grid
from dvp_jax.bench.timing import TimedDecoder, add_comparisons, time_decoders

pytestmark = pytest.mark.usefixtures("quick_compiler")

BENCHMARK = Benchmark("t5-small", (), batch=3, new_tokens=2)


def fails():
    raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")


def test_a_decoder_that_fails_is_not_timed_and_the_others_are():
    calls = []
    decoders = [
        TimedDecoder({"method": "full"}, lambda: calls.append("full")),
        TimedDecoder({"method": "dvp"}, fails),
        {"method": "calm", "error": "does not compile"},
        TimedDecoder({"method": "static"}, lambda: calls.append("static")),
    ]
    full, dvp, calm, static = time_decoders(decoders, 2, BENCHMARK)
    assert calls == ["full", "static"] * 3  # in turn, once to warm up
    assert dvp == {"method": "dvp", "error": "RuntimeError: RESOURCE_EXHAUSTED: Out of memory"}
    assert calm == {"method": "calm", "error": "does not compile"}
    for row in (full, static):
        assert 0 < row["least_ms"] <= row["ms_per_token"] <= row["most_ms"]
        np.testing.assert_allclose(row["tokens_per_s"], 3000 / row["ms_per_token"])


def test_times_are_compared_with_full_and_with_the_bound():
    row = {"method": "dvp", "ms_per_token": 2.0, "megabytes": 3.0}
    add_comparisons(row, 6e9, 5.0)
    assert (row["speedup"], row["bound_ms"], row["efficiency"]) == (2.5, 0.5, 0.25)
    failed = {"method": "dvp", "error": "no"}
    add_comparisons(failed, 6e9, 5.0)
    assert failed == {"method": "dvp", "error": "no"}


@pytest.mark.parametrize(("backend", "timed"), [("cpu", 2), ("gpu", 1)])
def test_on_a_gpu_a_row_comes_before_the_next_case_is_timed(backend, timed, checkpoint, monkeypatch):
    cases = grid(4, ("full", "static"), (2,), prune_size=8) + grid(4, ("static",), (3,))
    benchmark = Benchmark(str(checkpoint.folder), cases, source_length=4, new_tokens=2)
    compile_all = timing.compile_all

    def one_does_not_fit(model, encoded, configs):
        return {**compile_all(model, encoded, configs[:2]), configs[2]: "no memory"}

    calls = []
    time_in_turn = timing.time_in_turn
    monkeypatch.setattr(timing, "compile_all", one_does_not_fit)
    monkeypatch.setattr(timing, "time_in_turn", lambda c, n: calls.extend(c) or time_in_turn(c, n))
    monkeypatch.setattr(timing, "kernels_per_token", lambda compiled, depths: None)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rows = timing.measure(benchmark, 1)
    first = next(rows)
    assert (first["method"], "error" in first, len(calls)) == ("full", False, timed)
    second, third = rows
    assert (second["method"], second["depth"], "error" in second, len(calls)) == ("static", 2, False, 2)
    assert (third["depth"], third["error"]) == (3, "no memory")
