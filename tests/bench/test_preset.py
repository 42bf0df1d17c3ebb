"""Benchmarks in processes of their own: what fails, hangs or is killed takes nothing else with it."""

import dataclasses
import json
import math
import multiprocessing

import pytest

from dvp_jax.bench import preset
from dvp_jax.bench.cases import PRESETS, Benchmark, Preset, grid
from dvp_jax.t5.config import SHAPES
from dvp_jax.t5.hugging_face import parameter_shapes
from tests.bench import helpers

CASES = grid(4, ("full", "dvp"), (2,), prune_size=8)


class Clock:
    """Stands still, but for what a test adds."""

    now = 0.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(preset, "time", clock)
    return clock


@pytest.mark.slow
def test_a_benchmark_that_fails_hangs_or_dies_takes_no_row_of_another(
    checkpoint, clock, monkeypatch, tmp_path, capsys
):
    tiny = Benchmark(str(checkpoint.folder), CASES, source_length=4, new_tokens=2)
    benchmarks = (
        Benchmark("t5-small", CASES, vocab_size=7),
        dataclasses.replace(tiny, batch=helpers.HANGS),
        dataclasses.replace(tiny, batch=helpers.DIES),
        tiny,
    )
    reports = []

    class Results(preset.Results):
        def add(self, measurement):
            super().add(measurement)
            reports.append(json.loads((tmp_path / "results.json").read_text()))
            if self._benchmarks[-1].batch == helpers.HANGS:
                clock.now += 100

    monkeypatch.setattr(preset, "Results", Results)
    preset.run_preset(Preset(benchmarks, benchmark_s=60), 1, tmp_path, helpers.run)
    assert multiprocessing.active_children() == []

    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    bad_vocabulary, hangs, dies, good = (run["rows"] for run in runs)
    assert len(bad_vocabulary) == 2
    for row in bad_vocabulary:
        assert row["error"].startswith("prune_size is 8; allowed: an integer from 1 to 7")
    for rows, error in ((hangs, "killed after 60 s"), (dies, "its process was killed by SIGKILL")):
        assert [(row["method"], row.get("ms_per_token"), row.get("error")) for row in rows] == [
            ("full", 0.5, None), ("dvp", None, error)
        ]  # fmt: skip
    assert [(row["method"], row["mean_depth"], "error" in row) for row in good] == [
        ("full", 4, False), ("dvp", 2, False)
    ]  # fmt: skip

    # Each row was in the file as soon as it was there, and all of them were printed.
    counts = [sum(len(run["rows"]) for run in report["runs"]) for report in reports]
    assert counts == [3, 5, 7, 8]
    printed = capsys.readouterr().out
    assert printed.count("| full | 4 | 0.500 | 0.400 to 0.600 |") == 2
    assert printed.count("| dvp | 2 | not run: killed after 60 s |") == 1
    assert "a card, which reads 4000.0 GB/s." in printed
    assert (tmp_path / "time_against_depth.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_what_the_time_does_not_reach_is_not_run(clock, tmp_path, capsys, monkeypatch):
    def run_forever(benchmark, rounds, seconds, run):
        assert seconds == 30.0
        clock.now += seconds
        raise preset.BenchmarkError(f"killed after {seconds:.0f} s")
        yield

    monkeypatch.setattr(preset, "measurements", run_forever)
    benchmarks = (Benchmark("t5-small", CASES),) * 2
    preset.run_preset(Preset(benchmarks, benchmark_s=60, total_s=30), 1, tmp_path)
    runs = json.loads((tmp_path / "results.json").read_text())["runs"]
    assert [[row["error"] for row in run["rows"]] for run in runs] == [
        ["killed after 30 s"] * 2, ["the 30 s of the preset are over"] * 2
    ]  # fmt: skip


def test_the_gpu_preset_fits_in_eight_minutes_and_a_hang_leaves_time_for_others():
    gpu = PRESETS["gpu"]
    assert gpu.total_s < 480
    assert gpu.benchmark_s < gpu.total_s / 3
    cases = {(run.shape, run.batch): run.cases for run in gpu.benchmarks if len(run.cases) > 3}
    assert set(cases) == {(s, b) for s in ("t5-large", "t5-3b", "flan-t5-xxl") for b in (1, 8, 32)}
    for chosen in cases.values():
        asked = {(case.depth, case.exit_depths) for case in chosen if case.method == "dvp"}
        assert asked == {(depth, every) for depth in (0, 6, 12, 24) for every in (None, 4)}
        assert asked == {(case.depth, case.exit_depths) for case in chosen if case.method == "calm"}
        assert {case.method for case in chosen} == {"full", "static", "calm", "dvp"}


def test_flan_t5_xxl_has_a_decoder_of_11_gb():
    config = SHAPES["flan-t5-xxl"]
    sizes = {name: math.prod(shape) for name, shape in parameter_shapes(config).items()}
    assert 11.1e9 < sum(sizes.values()) < 11.2e9  # google/flan-t5-xxl has 11.14 billion parameters
    decoder = sum(size for name, size in sizes.items() if name[0] == "decoder")
    # A token reads no key and value weights of cross-attention.
    assert 10.5e9 < 2 * (decoder - 24 * 2 * 4096 * 4096) < 11.5e9
