"""What the explorer shows of each generated token: every depth's candidate and confidence, and its rank."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dvp_jax.data.task import Task
from dvp_jax.decode.api import encode
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.text import pad_rows, tokenize
from dvp_jax.decode.trace import trace
from dvp_jax.evaluate.evaluation import describe
from dvp_jax.runs.predictions import Line
from dvp_jax.t5.load import Model
from dvp_jax.t5.sharding import gathered

_BATCH = 16


def trace_texts(
    model: Model,
    task: Task,
    methods: Mapping[str, DecodeConfig],
    rows: Sequence[Mapping[str, Any]],
    lines: Sequence[Line],
    count: int,
) -> Iterator[dict[str, Any]]:
    """Rows of traces.jsonl: the first `count` examples as each method decoded them.

    Args:
        model: that decoded them.
        task: its examples, in the order of the lines.
        methods: names and settings.
        rows: of results.json, for this task.
        lines: of predictions.jsonl, for this task.
        count: of examples.
    """
    assert model.tokenizer is not None
    pieces = model.tokenizer.convert_ids_to_tokens
    examples = task.load()[: min(count, rows[0]["num_examples"])]
    if not examples:
        return
    ids, mask = tokenize(model, [example.prompt for example in examples], task.max_source_length)
    settings = {row["name"]: row for row in rows}
    with tqdm(total=len(methods) * len(examples), desc=f"{task.name}, tracing", unit="text") as bar:
        for name, cfg in methods.items():
            texts = [line for line in lines if line["name"] == name][: len(examples)]
            for start in range(0, len(texts), _BATCH):
                batch = slice(start, start + _BATCH)
                # Filled up, so that all batches are of one shape.
                rows_of_batch = np.arange(start, start + _BATCH) % len(texts)
                encoded = encode(model, ids[rows_of_batch], mask[rows_of_batch])
                tokens, exits = (
                    pad_rows([line[field] for line in texts[batch]], _BATCH, cfg.max_new_tokens, 0)[0]
                    for field in ("tokens", "exit_layers")
                )
                found = jax.tree.map(gathered, trace(model, encoded, tokens, exits, cfg))
                arrays = found.candidates, found.confidences, found.ranks
                for row, (line, example) in enumerate(zip(texts[batch], examples[batch], strict=True)):
                    length = len(line["tokens"])
                    candidates, confidences, ranks = (x[row, :length] for x in arrays)
                    pruned = settings[name]["prune_layer"]
                    yield {
                        "task": task.name,
                        "id": line["id"],
                        "name": name,
                        "method": cfg.method,
                        "threshold": settings[name]["threshold"],
                        "settings": describe({**settings[name], "threshold": None}),
                        "prompt": example.prompt,
                        "references": list(example.references),
                        "text": line["text"],
                        "num_layers": model.config.num_decoder_layers,
                        "prune_layer": pruned,
                        "prune_size": settings[name]["prune_size"],
                        "pieces": pieces(line["tokens"]),
                        "exit_layers": line["exit_layers"],
                        "candidates": list(map(pieces, candidates.tolist())),
                        "confidences": confidences.astype(float).tolist(),
                        "ranks": [int(rank[pruned - 1]) if pruned else None for rank in ranks],
                    }
                    bar.update()
