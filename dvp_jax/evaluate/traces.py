"""Rows of traces.jsonl, for the report's explorer: what every depth would have produced at each token."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dvp_jax.data.task import Example, Task
from dvp_jax.decode.api import encode
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.text import pad_rows, token_pieces, tokenize
from dvp_jax.decode.trace import Trace, trace
from dvp_jax.evaluate.results import Row, describe, finite
from dvp_jax.runs.predictions import Line
from dvp_jax.t5.load import Model
from dvp_jax.t5.sharding import to_host

_BATCH = 16


def trace_texts(
    model: Model,
    task: Task,
    methods: Mapping[str, DecodeConfig],
    rows: Sequence[Row],
    lines: Sequence[Line],
    count: int,
) -> Iterator[dict[str, Any]]:
    """Traces the texts that each method generated for the first `count` examples.

    Args:
        model: the model that generated them.
        task: gives the examples, in the order of the lines.
        methods: settings by name.
        rows: rows of results.json for this task.
        lines: lines of predictions.jsonl for this task.
        count: number of examples.

    Yields:
        Rows of traces.jsonl, with the fields that `dvp_jax.report.html.write_report` describes.
    """
    assert model.tokenizer is not None
    examples = task.load()[: min(count, rows[0]["num_examples"])]
    if not examples:
        return
    ids, mask = tokenize(model, [example.prompt for example in examples], task.max_source_length)
    row_of = {row["name"]: row for row in rows}
    with tqdm(total=len(methods) * len(examples), desc=f"{task.name}, tracing", unit="text") as bar:
        for name, cfg in methods.items():
            texts = [line for line in lines if line["name"] == name][: len(examples)]
            for start in range(0, len(texts), _BATCH):
                batch = slice(start, start + _BATCH)
                # The last batch is filled up with other texts, so that all have one shape.
                indices = np.arange(start, start + _BATCH) % len(texts)
                traced = _trace_batch(model, ids[indices], mask[indices], texts[batch], cfg)
                for index, (line, example) in enumerate(zip(texts[batch], examples[batch], strict=True)):
                    yield _trace_row(model, row_of[name], example, line, traced, index)
                    bar.update()


def _trace_batch(
    model: Model, ids: np.ndarray, mask: np.ndarray, texts: Sequence[Line], cfg: DecodeConfig
) -> Trace:
    """Traces at most `_BATCH` texts, whose prompts are (_BATCH, source) ids and mask."""
    encoded = encode(model, ids, mask)
    tokens, exit_layers = (
        pad_rows([line[field] for line in texts], _BATCH, cfg.max_new_tokens, 0)[0]
        for field in ("tokens", "exit_layers")
    )
    return jax.tree.map(to_host, trace(model, encoded, tokens, exit_layers, cfg))


def _trace_row(model: Model, row: Row, example: Example, line: Line, traced: Trace, index: int) -> dict[str, Any]:
    """The row of one text, from its line of predictions.jsonl and row `index` of a traced batch."""
    assert model.tokenizer is not None
    pieces = functools.partial(token_pieces, model.tokenizer)
    length, prune_layer = len(line["tokens"]), row["prune_layer"]
    # (tokens, depths) each
    candidates, confidences, ranks = (
        array[index, :length] for array in (traced.candidates, traced.confidences, traced.ranks)
    )
    return {
        "task": row["task"],
        "id": line["id"],
        "name": row["name"],
        "method": row["method"],
        "threshold": row["threshold"],
        "settings": describe({**row, "threshold": None}),
        "prompt": example.prompt,
        "references": list(example.references),
        "text": line["text"],
        "num_layers": model.config.num_decoder_layers,
        "prune_layer": prune_layer,
        "prune_size": row["prune_size"],
        "pieces": pieces(line["tokens"]),
        "exit_layers": line["exit_layers"],
        "candidates": list(map(pieces, candidates.tolist())),
        "confidences": [finite(depths) for depths in confidences.astype(float).tolist()],
        "ranks": [int(rank[prune_layer - 1]) if prune_layer else None for rank in ranks],
    }
