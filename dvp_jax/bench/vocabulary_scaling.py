"""How the cost of confidence grows with the vocabulary, with and without pruning."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dvp_jax.analysis.coverage import coverage_table, needed_sizes
from dvp_jax.bench.cases import Benchmark, grid
from dvp_jax.bench.timing import measure
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.evaluate.experiment import open_experiment
from dvp_jax.exits.cost import paper_confidence_flops, unembedding_flops
from dvp_jax.report.html import write_report
from dvp_jax.report.plots import vocabulary_scaling
from dvp_jax.report.table import Section, Table
from dvp_jax.runs.files import lock_workdir, write_json
from dvp_jax.runs.provenance import versions
from dvp_jax.t5.config import SHAPES, T5Config

METHODS = ("static", "calm", "dvp")


def run_vocabulary_scaling(
    config: Mapping[str, Any] | None,
    workdir: str | Path,
    *,
    vocab_sizes: Sequence[int],
    exit_layer: int | None,
    rounds: int,
    **timing: Any,
) -> list[Section]:
    """Times confidence over several vocabularies: vocab_scaling.json, a plot and report.html.

    Args:
        config: of an evaluation, to find how much of a trained model's vocabulary is needed; None to time only.
        workdir: made where it is missing.
        vocab_sizes: the vocabularies to time.
        exit_layer: the depth at which every token exits; None for half of the layers.
        rounds: timed rounds.
        **timing: "shape", "prune_size", and the other settings of `scaling_benchmarks`.

    Returns:
        The sections of the report.

    Raises:
        ValueError: bad settings or data.
        OSError: files that are missing, or a workdir that is in use or cannot be written.
    """
    benchmarks = scaling_benchmarks(vocab_sizes=vocab_sizes, exit_layer=exit_layer, **timing)
    made_by: dict[str, Any] = {
        "timing": {**timing, "rounds": rounds},
        "device": jax.devices()[0].device_kind,
        "versions": versions(),
    }
    coverage: dict[str, list[dict[str, Any]]] = {}
    with contextlib.ExitStack() as stack:
        if config is None:
            folder = stack.enter_context(lock_workdir(workdir))
        else:
            experiment = stack.enter_context(open_experiment(config, workdir, only="dvp"))
            folder, made_by = experiment.workdir, {**experiment.made_by, **made_by}
            coverage = needed_sizes(experiment)
        rows = time_confidence(benchmarks, rounds)
        plot = folder / "vocab_scaling.svg"
        vocabulary_scaling(rows, plot)
        write_json(folder / "vocab_scaling.json", {"rows": rows, "coverage": coverage, **made_by})
        tables = [scaling_table(rows), *([coverage_table(coverage)] if coverage else [])]
        plots = [("time and FLOPs of confidence against the vocabulary", plot)]
        sections = [Section("Cost of confidence", tables, plots)]
        write_report(folder / "report.html", "Vocabulary scaling", sections, made_by)
    return sections


def scaling_benchmarks(
    *,
    shape: str,
    vocab_sizes: Sequence[int],
    exit_layer: int | None,
    prune_size: int,
    batch: int,
    **fields: Any,
) -> list[Benchmark]:
    """A benchmark for each vocabulary. The float unembedding is read, so that methods differ in confidence alone.

    Where "dvp" by itself would read the int8 copy of the largest unembedding, that is timed too, for all.

    Args:
        shape: a key of SHAPES; its weights are random, for any vocabulary.
        vocab_sizes: the vocabularies.
        exit_layer: the depth at which every token exits, from 2; None for half of the layers.
        prune_size: K.
        batch: rows decoded together.
        **fields: the other fields of `Benchmark`.

    Raises:
        ValueError: an unknown shape, an exit layer that it does not have, a vocabulary smaller than K.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape is {shape!r}; allowed: {', '.join(SHAPES)}, with weights for any vocabulary")
    num_layers = SHAPES[shape].num_decoder_layers
    depth = num_layers // 2 if exit_layer is None else exit_layer
    if not 2 <= depth <= num_layers:
        raise ValueError(f"exit_layer is {depth}; allowed: from 2 to {num_layers}")
    if not vocab_sizes or min(vocab_sizes) < prune_size:
        raise ValueError(
            f"vocab_sizes is {list(vocab_sizes)}; allowed: at least one, each at least prune_size, {prune_size}"
        )
    cases = grid(num_layers, METHODS, [depth], prune_size=prune_size, unembedding="float")
    dvp, largest = DecodeConfig(method="dvp", prune_size=prune_size), max(vocab_sizes)
    config = dataclasses.replace(SHAPES[shape], vocab_size=largest)
    if dvp.reads_int8(dvp.policy(num_layers, largest), config, jax.default_backend(), batch):
        cases += grid(num_layers, ("dvp",), [depth], prune_size=prune_size, unembedding="int8")
    return [Benchmark(shape, cases, vocab_size=size, batch=batch, **fields) for size in vocab_sizes]


def time_confidence(benchmarks: Sequence[Benchmark], rounds: int) -> list[dict[str, Any]]:
    """Runs benchmarks of `scaling_benchmarks`; returns the `scaling_rows` of all of them.

    Raises:
        ValueError: a case cannot run, for lack of memory for example.
    """
    rows = []
    for benchmark in benchmarks:
        assert benchmark.vocab_size is not None
        config = dataclasses.replace(SHAPES[benchmark.shape], vocab_size=benchmark.vocab_size)
        timed = list(measure(benchmark, rounds))
        for row in timed:
            if "error" in row:
                raise ValueError(f"vocab_sizes has {benchmark.vocab_size}; {row['method']} fails: {row['error']}")
        rows += scaling_rows(timed, config)
    return rows


def scaling_rows(timed: Sequence[Mapping[str, Any]], config: T5Config) -> list[dict[str, Any]]:
    """Time and FLOPs of confidence, for every method but "static", which computes none.

    Args:
        timed: rows with "method", "depth" (where every token exits), "prune_size", "int8_unembedding" (whether the
            full vocabulary is read from its int8 copy) and "ms_per_token". One row is of "static", at the same
            depth, with the float unembedding. `min_exit_layer` and `prune_layer` are the defaults of
            `DecodeConfig`.
        config: the shape that was timed.

    Returns:
        Rows with "vocab_size", "method" (and that it reads the int8 copy, if it does), "exit_layer", "prune_size"
        (None without pruning), "ms_per_token", "confidence_ms_per_token" (what a token takes beyond "static"),
        "confidence_flops_per_token" (as the paper's code counts them) and "unembedding_flops_per_token" (of
        products beyond the single one of "static").

    Raises:
        ValueError: no row is of "static".
    """
    static = next((row for row in timed if row["method"] == "static"), None)
    if static is None:
        raise ValueError("timed has no row whose method is 'static'; allowed: one, to subtract")
    rows = []
    for row in timed:
        if row is static:
            continue
        cfg = DecodeConfig(method=row["method"], prune_size=row["prune_size"])
        policy = cfg.policy(config.num_decoder_layers, config.vocab_size)
        exit_layer = np.array(row["depth"])
        product = 2.0 * config.d_model * config.vocab_size
        rows.append(
            {
                "vocab_size": config.vocab_size,
                "method": f"{row['method']}, int8 copy" if row["int8_unembedding"] else row["method"],
                "exit_layer": row["depth"],
                "prune_size": row["prune_size"] if policy.kept_rows else None,
                "ms_per_token": row["ms_per_token"],
                "confidence_ms_per_token": row["ms_per_token"] - static["ms_per_token"],
                "confidence_flops_per_token": float(paper_confidence_flops(exit_layer, policy, config)),
                "unembedding_flops_per_token": float(unembedding_flops(exit_layer, policy, config)) - product,
            }
        )
    return rows


def scaling_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The `scaling_rows` of several vocabularies, as a table."""
    head = ["vocabulary", "method", "ms/token", "of confidence", "confidence FLOPs/token"]
    head += ["unembedding FLOPs/token"]
    lines = [
        [
            f"{row['vocab_size']:,}",
            row["method"],
            f"{row['ms_per_token']:.2f}",
            f"{row['confidence_ms_per_token']:.2f}",
            f"{row['confidence_flops_per_token']:.3g}",
            f"{row['unembedding_flops_per_token']:.3g}",
        ]
        for row in rows
    ]
    return Table(head, lines)
