"""Refilled slots against fixed batches: tokens a second, rows at work and layers run in a step, and the texts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int
from tqdm import tqdm

from dvp_jax.decode.api import decode, encode
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.engine import Engine
from dvp_jax.decode.text import source_batches, unpad_rows
from dvp_jax.t5.load import Model

ORDERS = ("given", "source_length", "text_length", "mean_exit")
"""In which an engine may get its sources; the last two as who knew the texts beforehand would sort them."""

Ids = Int[np.ndarray, "sources length"]
Mask = Bool[np.ndarray, "sources length"]
Texts = list[tuple[list[int], list[int]]]
"""Tokens and exits, source by source."""


def fixed_batches(
    model: Model, cfg: DecodeConfig, ids: Ids, mask: Mask, rows: int
) -> tuple[Texts, dict[str, float]]:
    """Decodes batch after batch, each as long as its longest text takes."""
    texts, work = [], {"steps": 0.0, "tokens": 0, "layers": 0}
    for _, *source in source_batches(ids, mask, rows):
        out = jax.tree.map(np.asarray, decode(model, encode(model, *source), cfg))
        for tokens, exits, length in zip(out.tokens, out.exit_layers, out.lengths[: len(source[0])], strict=False):
            texts.append((tokens[:length].tolist(), exits[:length].tolist()))
        work["steps"] += int(out.lengths.max())
        work["tokens"] += int(out.lengths.sum())
        work["layers"] += int(out.exit_layers.max(axis=0).sum())
    return texts, work


def refilled_slots(
    model: Model, cfg: DecodeConfig, ids: Ids, mask: Mask, rows: int
) -> tuple[Texts, dict[str, float]]:
    """Decodes the sources through an engine, in their order."""
    engine = Engine(model, cfg, slots=rows)
    outputs = [result.output for result in engine.run(unpad_rows(ids, mask), in_order=True)]
    return [(text.tokens, text.exit_layers) for text in outputs if text is not None], engine.work


def sort(order: str, mask: Mask, texts: Texts) -> Int[np.ndarray, " sources"]:
    """Where each place of an order finds its source, given the texts to come; of lengths the longest first."""
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
    """Times fixed batches by source length, then the engine with the sources in each order, in turn.

    Args:
        model: the model.
        cfg: how to decode.
        ids: one row a source.
        mask: False where there is padding.
        rows: decoded together.
        orders: some of ORDERS.
        rounds: timed.

    Returns:
        For each way its medians, and of the last round what was done: tokens a second, encoder included, and
        how many times those of fixed batches; how many texts are theirs; rows at work and layers run in a step,
        those of its deepest row; the mean exit.
    """
    by_length = np.argsort(mask.sum(axis=1), kind="stable")
    some = by_length[::8]
    some = some[(len(some) - len(ids)) % rows :]  # whose last batch is as short as that of all
    for way in (fixed_batches, refilled_slots):  # compiles
        way(model, cfg, ids[some], mask[some], rows)
    seconds: dict[str, list[float]] = {name: [] for name in ("fixed", *orders)}
    found: dict[str, tuple[Texts, dict[str, float]]] = {}
    texts: Texts = []
    for _ in tqdm(range(rounds), desc=f"{cfg.method}, {rows} rows", unit="round"):
        for name, times in seconds.items():
            order = by_length if name == "fixed" else sort(name, mask, texts)
            way = fixed_batches if name == "fixed" else refilled_slots
            start = time.perf_counter()
            sorted_texts, work = way(model, cfg, ids[order], mask[order], rows)
            times.append(time.perf_counter() - start)
            found[name] = [sorted_texts[place] for place in np.argsort(order)], work
            texts = found["fixed"][0]
    speeds = {name: work["tokens"] / statistics.median(seconds[name]) for name, (_, work) in found.items()}
    return [
        {
            "rows": rows,
            "way": name,
            "seconds": seconds[name],
            "tokens_per_s": speeds[name],
            "speed_up": speeds[name] / speeds["fixed"],
            "same": sum(map(lambda a, b: a == b, others, texts)),
            "texts": len(texts),
            "rows_per_step": work["tokens"] / work["steps"],
            "layers_per_step": work["layers"] / work["steps"],
            "mean_exit": float(np.mean(np.concatenate([exits for _, exits in others]))),
        }
        for name, (others, work) in found.items()
    ]


def table(found: list[dict[str, Any]]) -> str:
    """The rows, as Markdown."""
    head = ["task, method", "B", "way", "tokens/s", "of fixed batches", "the same"]
    head += ["rows a step", "layers a step", "mean exit"]
    lines = ["| " + " | ".join(head) + " |", "| --- | ---: | --- |" + " ---: |" * (len(head) - 3)]
    for row in found:
        way = "fixed batches" if row["way"] == "fixed" else f"engine, {row['way']}"
        cells = [f"{row['task']}, {row['name']}", str(row["rows"]), way, f"{row['tokens_per_s']:.0f}"]
        cells += [f"{row['speed_up']:.2f}x", f"{row['same']} of {row['texts']}"]
        cells += [f"{row[key]:.2f}" for key in ("rows_per_step", "layers_per_step", "mean_exit")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
