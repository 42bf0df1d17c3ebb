"""The results of benchmarks: rows that are printed and written as soon as they are there."""

from __future__ import annotations

import dataclasses
import platform
from pathlib import Path
from typing import Any

import jax

from dvp_jax.bench.baselines import LIBRARIES
from dvp_jax.bench.cases import SPREAD, Benchmark
from dvp_jax.bench.timing import Measurement, Row
from dvp_jax.report.plots import confidence_against_vocabulary, time_against_depth
from dvp_jax.report.table import Table
from dvp_jax.runs.files import prepare_workdir, write_json

_FORMATS = {
    "ms_per_token": ("ms/token", ""),
    "range": ("least to most", ""),
    "speedup": ("speed-up", ".2f"),
    "megabytes": ("MB/token", ".0f"),
    "efficiency": ("efficiency", ".2f"),
    "kernels": ("kernels", ".0f"),
    "compile_s": ("compile s", ".1f"),
    "peak_megabytes": ("peak MB", ".0f"),
}
_HEAD = ("method", "exit", *(title for title, _ in _FORMATS.values()))
_SETTINGS = ("exit_depths", "branch_every", "unembedding", "prune_size", "max_waiting")


class Results:
    """The tables of benchmarks that run one after the other, and their folder.

    `start` begins a table, `add` prints a row of it and writes results.json, which is complete at any moment.
    """

    def __init__(self, folder: str | Path | None) -> None:
        """Prepares the folder.

        Args:
            folder: where results.json and the plots go; None to write nothing.

        Raises:
            ValueError: the path is empty.
            OSError: the folder cannot be written.
        """
        self._folder = None if folder is None else prepare_workdir(folder)
        self._runs: list[dict[str, Any]] = []
        self._benchmarks: list[Benchmark] = []
        self._backend: str | None = None

    def start(self, benchmark: Benchmark) -> None:
        """Begins a benchmark: prints its heading and the head of its table."""
        settings = {name: value for name, value in dataclasses.asdict(benchmark).items() if name != "cases"}
        self._runs.append({**settings, "device": None, "bandwidth": None, "rows": []})
        self._benchmarks.append(benchmark)
        head = Table(_HEAD, [["method", *["1"] * (len(_HEAD) - 1)]]).markdown().splitlines()[:2]
        print("", heading(benchmark), "", *head, sep="\n", flush=True)

    def add(self, measurement: Measurement) -> None:
        """Prints a row of the benchmark that was started last, and writes all rows so far."""
        row, self._backend, device, bandwidth = measurement
        self._runs[-1].update(device=device, bandwidth=bandwidth)
        self._add(row)

    def fail(self, reason: str) -> None:
        """Gives each case and baseline of the last benchmark that has no row yet one that says why."""
        benchmark, rows = self._benchmarks[-1], self._runs[-1]["rows"]
        for case in benchmark.cases:
            fields = dataclasses.asdict(case)
            if not any(fields.items() <= row.items() for row in rows):
                self._add({**fields, "error": reason})
        for name in LIBRARIES[benchmark.baselines] if benchmark.baselines else ():
            if not any(row["method"] == name for row in rows):
                self._add({"method": name, "error": reason})

    def _add(self, row: Row) -> None:
        self._runs[-1]["rows"].append(row)
        print(benchmark_table(self._benchmarks[-1], [row]).markdown().splitlines()[-1], flush=True)
        self._write()

    def finish(self) -> None:
        """Ends the last benchmark: prints where it ran."""
        run = self._runs[-1]
        if run["device"]:
            rate = run["bandwidth"] / 1e9
            print(f"\njax {jax.__version__}, {run['device']}, which reads {rate:.1f} GB/s.", flush=True)
        self._write()

    def plot(self) -> None:
        """Draws the plots of the rows that have times."""
        if self._folder is None:
            return
        timed = [{**run, "rows": [row for row in run["rows"] if "error" not in row]} for run in self._runs]
        rows = [row for row in timed[0]["rows"] if row.get("exit_depths") is None]
        time_against_depth(rows, self._folder / "time_against_depth.svg")
        compared = [run for run in timed if {"static", "calm", "dvp"} <= {row["method"] for row in run["rows"]}]
        if any(run["vocab_size"] for run in compared):
            confidence_against_vocabulary(compared, self._folder / "confidence_against_vocabulary.svg")

    def _write(self) -> None:
        if self._folder:
            report = {
                "versions": {"jax": jax.__version__, "python": platform.python_version()},
                "backend": self._backend,
                "runs": self._runs,
            }
            write_json(self._folder / "results.json", report)


def heading(benchmark: Benchmark) -> str:
    """One line that describes a benchmark."""
    vocabulary = f", vocabulary {benchmark.vocab_size:,}" if benchmark.vocab_size else ""
    source = f"batch {benchmark.batch}, source {benchmark.source_length}"
    return f"{benchmark.shape}, {benchmark.dtype}, {source}{vocabulary}"


def benchmark_table(benchmark: Benchmark, rows: list[Row]) -> Table:
    """Rows of a benchmark as a table. Settings that differ between its cases stand beside the method.

    Args:
        benchmark: the benchmark.
        rows: some rows of `dvp_jax.bench.timing.run_benchmark`.
    """
    varied = [name for name in _SETTINGS if len({getattr(case, name) for case in benchmark.cases}) > 1]
    lines = []
    for row in rows:
        settings = [f"{name} {row[name]}" for name in varied if row.get(name) is not None]
        method = " ".join([row["method"], *settings])
        depth = row.get("depth", "")
        if "error" in row:
            exit_ = "spread" if depth == SPREAD else str(depth)
            lines.append([method, exit_, f"not run: {row['error']}", *[""] * (len(_HEAD) - 3)])
            continue
        # Where the method asks nothing at the depth, the tokens exit at another one.
        exit_ = f"{row['mean_depth']:.1f} spread" if depth == SPREAD else f"{row['mean_depth']:.0f}"
        cells = {name: f"{row[name]:{form}}" for name, (_, form) in _FORMATS.items() if row.get(name) is not None}
        digits = ".2f" if row["ms_per_token"] >= 5 else ".3f"
        cells["ms_per_token"] = f"{row['ms_per_token']:{digits}}"
        cells["range"] = f"{row['least_ms']:{digits}} to {row['most_ms']:{digits}}"
        if "speedup" in cells:
            cells["speedup"] += "x"
        lines.append([method, exit_, *(cells.get(name, "") for name in _FORMATS)])
    return Table(_HEAD, lines)
