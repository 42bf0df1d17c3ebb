"""How many tokens a second? Slots that are refilled against fixed batches, on a task's own sources and exits.

    python -m experiments.throughput --workdir=runs/throughput \
        --config=experiments/configs/multi30k_throughput.py \
        --config.model=CHECKPOINT --config.tasks.translation.source_path=test_2016_flickr.en \
        --config.tasks.translation.target_path=test_2016_flickr.de --slots=4,16

For every method of the config and number of rows B: tokens a second, encoder included, of batches of B sorted by
source length and of the engine with B slots, in turn, medians of --rounds; how many texts are the same; and how
many layers a step runs, those of its deepest row, beside the mean exit. Writes throughput.json; prints a table.
"""

from __future__ import annotations

import statistics
import time
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
    """Decodes the sources through an engine."""
    engine = Engine(model, cfg, slots=rows)
    return [(text.tokens, text.exit_layers) for text in engine.texts(unpad_rows(ids, mask))], engine.work


WAYS = {"fixed": fixed_batches, "engine": refilled_slots}


def measure(model: Model, cfg: DecodeConfig, ids: Ids, mask: Mask, rows: int, rounds: int) -> dict[str, Any]:
    """Both ways in turn, on sources sorted by length."""
    order = np.argsort(mask.sum(axis=1), kind="stable")
    some = order[::8]
    some = some[(len(some) - len(order)) % rows :]  # whose last batch is as short as that of all
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for way in WAYS.values():  # compiles
        way(model, cfg, ids[some], mask[some], rows)
    for _ in tqdm(range(rounds), desc=f"{cfg.method}, {rows} rows", unit="round"):
        found = {}
        for name, way in WAYS.items():
            start = time.perf_counter()
            found[name] = way(model, cfg, ids[order], mask[order], rows)
            seconds[name].append(time.perf_counter() - start)
    (texts, _), (others, _) = found.values()
    row: dict[str, Any] = {"rows": rows, "same": sum(map(lambda a, b: a == b, texts, others)), "texts": len(texts)}
    row["mean_exit"] = float(np.mean(np.concatenate([exits for _, exits in others])))
    for name, (_, work) in found.items():
        row[name] = {
            "tokens_per_s": work["tokens"] / statistics.median(seconds[name]),
            "rows_per_step": work["tokens"] / work["steps"],
            "layers_per_step": work["layers"] / work["steps"],
            "seconds": seconds[name],
        }
    return {**row, "speed_up": row["engine"]["tokens_per_s"] / row["fixed"]["tokens_per_s"]}


def table(found: list[dict[str, Any]]) -> str:
    """The rows, as Markdown."""
    head = ["task, method", "B", "fixed, tokens/s", "engine, tokens/s", "speed-up", "the same", "mean exit"]
    head += [f"{what} a step, {name}" for what in ("rows", "layers") for name in WAYS]
    lines = ["| " + " | ".join(head) + " |", "| --- |" + " ---: |" * (len(head) - 1)]
    for row in found:
        cells = [f"{row['task']}, {row['name']}", str(row["rows"])]
        cells += [f"{row[name]['tokens_per_s']:.0f}" for name in WAYS]
        cells += [f"{row['speed_up']:.2f}x", f"{row['same']} of {row['texts']}", f"{row['mean_exit']:.2f}"]
        cells += [f"{row[name][f'{what}_per_step']:.2f}" for what in ("rows", "layers") for name in WAYS]
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
                    row = measure(setup.model, cfg, ids, mask, rows, _ROUNDS.value)
                    found.append({"task": task.name, "name": name, **row})
        write_json(setup.workdir / "throughput.json", {"rows": found, **setup.made_by})
        print(table(found))


if __name__ == "__main__":
    flags.mark_flags_as_required(["config"])
    launch.run(main)
