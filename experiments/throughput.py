"""How many tokens a second? Slots that are refilled against fixed batches, on a task's own sources and exits.

    python -m experiments.throughput --workdir=runs/throughput \
        --config=experiments/configs/multi30k_throughput.py \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=test_2016_flickr.en \
        --config.tasks.translation.target_path=test_2016_flickr.de --slots=4,16

For every method of the config and number of rows B: tokens a second, encoder included, of batches of B sorted by
source length and of the engine with B slots and the sources in each of --orders, in turn, medians of --rounds; how
many texts are the same; and how many layers a step runs, those of its deepest row, beside the mean exit. Writes
throughput.json; prints a table.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from jaxtyping import Bool, Int
from ml_collections import config_flags
from tqdm import tqdm

from dvp_jax import launch
from dvp_jax.data.tokens import source_batches, unpad_rows
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.engine import Engine
from dvp_jax.decode.generate import decode, encode, tokenize
from dvp_jax.experiment import set_up
from dvp_jax.files import write_json
from dvp_jax.t5.load import Model

_CONFIG = config_flags.DEFINE_config_file("config", None, "What to run; see experiments/configs.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where throughput.json goes.", required=True)
_SLOTS = flags.DEFINE_list("slots", "16", "Numbers of rows decoded together, to compare.")
_ORDERS = flags.DEFINE_multi_enum(
    "orders",
    ["given"],
    ["given", "source_length", "text_length", "mean_exit"],
    "Orders in which the engine gets the sources; the last two as who knew the texts beforehand would sort them.",
)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timed rounds.", lower_bound=1)

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


def measure(
    model: Model, cfg: DecodeConfig, ids: Ids, mask: Mask, rows: int, orders: Sequence[str], rounds: int
) -> list[dict[str, Any]]:
    """Fixed batches by source length, then the engine with the sources in each order, in turn."""
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


def main() -> None:
    """Times both ways for each task, method and number of rows."""
    config = _CONFIG.value.to_dict()
    with set_up(config, _WORKDIR.value) as setup:
        found = []
        for task, methods in setup.tasks:
            prompts = [example.prompt for example in task.load()[: config["limit"]]]
            ids, mask = tokenize(setup.model, prompts, task.max_source_length)
            for rows in map(int, _SLOTS.value):
                for name, cfg in methods.items():
                    ways = measure(setup.model, cfg, ids, mask, rows, _ORDERS.value, _ROUNDS.value)
                    found += [{"task": task.name, "name": name, **way} for way in ways]
        write_json(setup.workdir / "throughput.json", {"rows": found, **setup.made_by})
        print(table(found))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
