"""Throughput of an engine, which refills its slots, against batches that stay as they are until all rows end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm

from dvp_jax.decode.api import decode, encode
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.engine import Engine
from dvp_jax.decode.text import source_batches, tokenize, unpad_rows
from dvp_jax.evaluate.experiment import open_experiment
from dvp_jax.report.table import Table
from dvp_jax.runs.files import write_json
from dvp_jax.t5.load import Model

FIXED = "fixed"
"""The schedule of fixed batches, sorted by source length."""
ORDERS = ("given", "source_length", "text_length", "mean_exit")
"""Orders in which an engine gets its sources. The last two are bounds: they need the texts beforehand."""

Ids = Int[np.ndarray, "sources length"]
Mask = Bool[np.ndarray, "sources length"]
Texts = list[tuple[list[int], list[int]]]
"""For each source, the generated tokens and their exit layers."""


class Decoding(NamedTuple):
    """The result of decoding all sources once."""

    texts: Texts  # in the order of the sources
    steps: int
    tokens: int  # generated, of all rows
    layers: int  # run: in each step as many as its deepest row needs


def run_throughput(
    config: Mapping[str, Any], workdir: str | Path, *, slots: Sequence[int], orders: Sequence[str], rounds: int
) -> str:
    """Compares schedules for each task and method of a config, and each number of rows: throughput.json.

    Args:
        config: of an evaluation.
        workdir: made where it is missing.
        slots: numbers of rows decoded together.
        orders: some of ORDERS.
        rounds: timed rounds.

    Returns:
        The table, as Markdown.

    Raises:
        ValueError: bad settings or data.
        OSError: files that are missing, or a workdir that is in use or cannot be written.
    """
    with open_experiment(config, workdir) as experiment:
        rows = []
        for task, methods in experiment.tasks:
            prompts = [example.prompt for example in task.load()[: experiment.made_by["config"]["limit"]]]
            ids, mask = tokenize(experiment.model, prompts, task.max_source_length)
            for batch_size in slots:
                for name, cfg in methods.items():
                    compared = compare(experiment.model, cfg, ids, mask, batch_size, orders, rounds)
                    rows += [{"task": task.name, "name": name, **row} for row in compared]
        write_json(experiment.workdir / "throughput.json", {"rows": rows, **experiment.made_by})
    return throughput_table(rows).markdown()


def fixed_batches(model: Model, cfg: DecodeConfig, ids: Ids, mask: Mask, batch_size: int) -> Decoding:
    """Decodes the sources batch after batch; a batch takes as many steps as its longest text.

    Args:
        model: the model.
        cfg: how to decode.
        ids: (sources, length) token ids, padded on the right.
        mask: (sources, length), False at padding.
        batch_size: rows decoded together.
    """
    texts: Texts = []
    steps = tokens = layers = 0
    for _, *source in source_batches(ids, mask, batch_size):
        out = jax.tree.map(np.asarray, decode(model, encode(model, *source), cfg))
        # Rows that pad the batch come last; strict=False leaves them out.
        for row, exits, length in zip(out.tokens, out.exit_layers, out.lengths[: len(source[0])], strict=False):
            texts.append((row[:length].tolist(), exits[:length].tolist()))
        steps += int(out.lengths.max())
        tokens += int(out.lengths.sum())
        layers += int(out.exit_layers.max(axis=0).sum())
    return Decoding(texts, steps, tokens, layers)


def refilled_slots(model: Model, cfg: DecodeConfig, ids: Ids, mask: Mask, slots: int) -> Decoding:
    """Decodes the sources through an engine, in their order.

    Args:
        model: the model.
        cfg: how to decode.
        ids: (sources, length) token ids, padded on the right.
        mask: (sources, length), False at padding.
        slots: rows decoded together.
    """
    engine = Engine(model, cfg, slots=slots)
    outputs = [result.output for result in engine.run(unpad_rows(ids, mask), in_order=True)]
    texts = [(output.tokens, output.exit_layers) for output in outputs if output is not None]
    return Decoding(texts, *(int(engine.work[name]) for name in ("steps", "tokens", "layers")))


def sort(order: str, mask: Mask, texts: Texts) -> Int[np.ndarray, " sources"]:
    """The indices that bring the sources into an order: lengths descend, mean exits ascend.

    Args:
        order: one of ORDERS.
        mask: (sources, length), False at padding.
        texts: what will be generated for each source.
    """
    keys = {
        "given": range(len(mask)),
        "source_length": -mask.sum(axis=1),
        "text_length": [-len(tokens) for tokens, _ in texts],
        "mean_exit": [np.mean(exits) for _, exits in texts],
    }
    return np.argsort(np.asarray(keys[order]), kind="stable")


def compare(
    model: Model, cfg: DecodeConfig, ids: Ids, mask: Mask, rows: int, orders: Sequence[str], rounds: int
) -> list[dict[str, Any]]:
    """Times fixed batches, and the engine with the sources in each order, in turn.

    Args:
        model: the model.
        cfg: how to decode.
        ids: (sources, length) token ids, padded on the right.
        mask: (sources, length), False at padding.
        rows: rows decoded together: the batch size, and the number of slots.
        orders: some of ORDERS.
        rounds: timed rounds.

    Returns:
        A row for each schedule, FIXED or an order: the "seconds" of each round; "tokens_per_s", by their median,
        encoder included; "speed_up" against fixed batches; "same", how many of the "texts" are those of fixed
        batches; the mean of "rows_per_step" and of "layers_per_step", which the deepest row decides; "mean_exit".
    """
    by_length = np.argsort(mask.sum(axis=1), kind="stable")
    _warm_up(model, cfg, ids, mask, rows, by_length)
    seconds: dict[str, list[float]] = {schedule: [] for schedule in (FIXED, *orders)}
    decodings: dict[str, Decoding] = {}
    run: Callable[[Model, DecodeConfig, Ids, Mask, int], Decoding]
    for _ in tqdm(range(rounds), desc=f"{cfg.method}, {rows} rows", unit="round"):
        for schedule, times in seconds.items():
            if schedule == FIXED:
                indices, run = by_length, fixed_batches
            else:
                indices, run = sort(schedule, mask, decodings[FIXED].texts), refilled_slots
            start = time.perf_counter()
            decoding = run(model, cfg, ids[indices], mask[indices], rows)
            times.append(time.perf_counter() - start)
            texts = [decoding.texts[index] for index in np.argsort(indices)]  # in the order given
            decodings[schedule] = decoding._replace(texts=texts)
    fixed = decodings[FIXED]
    fixed_speed = fixed.tokens / statistics.median(seconds[FIXED])
    result = []
    for schedule, decoding in decodings.items():
        speed = decoding.tokens / statistics.median(seconds[schedule])
        result.append(
            {
                "rows": rows,
                "schedule": schedule,
                "seconds": seconds[schedule],
                "tokens_per_s": speed,
                "speed_up": speed / fixed_speed,
                "same": sum(a == b for a, b in zip(decoding.texts, fixed.texts, strict=True)),
                "texts": len(fixed.texts),
                "rows_per_step": decoding.tokens / decoding.steps,
                "layers_per_step": decoding.layers / decoding.steps,
                "mean_exit": float(np.mean(np.concatenate([exits for _, exits in decoding.texts]))),
            }
        )
    return result


def _warm_up(
    model: Model, cfg: DecodeConfig, ids: Ids, mask: Mask, rows: int, by_length: Int[np.ndarray, " sources"]
) -> None:
    """Compiles what all sources need, with every eighth of them by length."""
    some = by_length[::8]
    some = some[(len(some) - len(ids)) % rows :]  # so that the last batch is as short as that of all sources
    for run in (fixed_batches, refilled_slots):
        run(model, cfg, ids[some], mask[some], rows)


def throughput_table(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows of `compare`, with "task" and "name" of each method, as a table."""
    head = ["task, method", "B", "schedule", "tokens/s", "against fixed batches", "same texts"]
    head += ["rows a step", "layers a step", "mean exit"]
    lines = []
    for row in rows:
        schedule = "fixed batches" if row["schedule"] == FIXED else f"engine, {row['schedule']}"
        cells = [f"{row['task']}, {row['name']}", str(row["rows"]), schedule, f"{row['tokens_per_s']:.0f}"]
        cells += [f"{row['speed_up']:.2f}x", f"{row['same']} of {row['texts']}"]
        cells += [f"{row[name]:.2f}" for name in ("rows_per_step", "layers_per_step", "mean_exit")]
        lines.append(cells)
    return Table(head, lines)
