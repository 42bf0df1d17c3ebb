"""Runs several ways of decoding side by side over one task: quality, exits, FLOPs and time."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dvp_jax.data.task import Task
from dvp_jax.decode.api import decode, decode_policy, encode
from dvp_jax.decode.config import METHODS, DecodeConfig, make_config
from dvp_jax.decode.engine import Engine
from dvp_jax.decode.text import GeneratedText, source_bucket, to_text, tokenize, unpad_rows
from dvp_jax.exits.cost import decoder_layer_flops, paper_confidence_flops, unembedding_flops
from dvp_jax.exits.policy import CALM, DVP, Oracle
from dvp_jax.runs.predictions import Line, Predictions
from dvp_jax.t5.load import Model
from dvp_jax.t5.sharding import gathered


def make_methods(settings: Mapping[str, Mapping[str, Any]], max_new_tokens: int) -> dict[str, DecodeConfig]:
    """Named settings as configs, "full" first and by K.

    Args:
        settings: fields of `DecodeConfig` under the name of each row.
        max_new_tokens: where a row does not say.

    Raises:
        ValueError: a field that there is not, or an impossible value.
    """
    methods = {
        name: make_config({"max_new_tokens": max_new_tokens, **fields}, f"methods.{name}")
        for name, fields in settings.items()
    }
    return dict(sorted(methods.items(), key=lambda item: (METHODS.index(item[1].method), item[1].prune_size)))


def evaluate(
    model: Model,
    task: Task,
    methods: Mapping[str, DecodeConfig],
    *,
    batch_size: int = 1,
    limit: int | None = None,
    done: Predictions | None = None,
) -> tuple[list[dict[str, Any]], list[Line]]:
    """Decodes every example in every way and scores the texts.

    A few batches at a time are decoded by all methods, so that a machine whose speed drifts treats them alike;
    within them a row that ends makes room for the next. Every shape is compiled before the clock starts.
    Times are of decoding, without the encoder, which costs all methods the same and is reported beside them.

    Args:
        model: with a tokenizer.
        task: what to decode.
        methods: names and settings; the one whose method is "full", if any, is what the others' speed-up is over.
        batch_size: rows decoded together.
        limit: number of examples, from the first; None for all.
        done: batches that need no decoding; takes those that did. Of several processes each decodes a part, or
            all decode together where the model is on a mesh of all their devices; each returns the same.

    Returns:
        Rows of results.json, one a method, and rows of predictions.jsonl, by method and example.

    Raises:
        ValueError: no methods; batch_size or limit below 1; settings that do not fit the model; bad data; more
            processes than batches.
        OSError: a data file is missing, or the processes share no folder.
    """
    if not methods:
        raise ValueError("methods is empty; allowed: at least one")
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; allowed: at least 1")
    policies = {name: decode_policy(model, cfg) for name, cfg in methods.items()}
    examples = task.load()[:limit]
    done = Predictions() if done is None else done

    sources = unpad_rows(*tokenize(model, [example.prompt for example in examples], task.max_source_length))
    lengths = np.array([len(source) for source in sources])
    # One at a time there is nobody to make room for: each example is a unit of work of its own.
    unit = batch_size if batch_size == 1 else batch_size * _BATCHES
    batches = [sources[start : start + unit] for start in range(0, len(sources), unit)]
    if len(batches) < done.process.parts:
        raise ValueError(
            f"num_processes is {done.process.parts}; allowed: at most {len(batches)}, the parts that {task.name} is "
            f"decoded in ({len(examples)} examples, batch_size {batch_size})"
        )
    left = {
        index: [name for name in methods if done.get(task.name, name, index) is None]
        for index in range(len(batches))
    }
    mine = done.process.part([index for index, names in left.items() if names])
    buckets = {source_bucket(len(row)): row for index in mine for row in batches[index]}
    for row in tqdm(buckets.values(), desc="compiling", unit="shape"):
        for cfg in methods.values():
            for count in {1, min(2, batch_size)}:  # what an engine encodes together
                _decode(model, cfg, [row] * count, batch_size)

    tokens, begin = 0, time.perf_counter()
    with tqdm(total=len(examples), desc=task.name, unit="example") as bar:
        bar.update(len(examples) - sum(len(batches[index]) for index in mine))
        for index in mine:
            rows, of_batch = batches[index], examples[index * unit :]
            for name in left[index]:
                texts, seconds = _decode(model, methods[name], rows, batch_size)
                lines = [
                    {"id": example.id, **dataclasses.asdict(text), **seconds}
                    for example, text in zip(of_batch, texts, strict=False)
                ]
                done.add(task.name, name, index, lines)
                tokens += sum(len(text.tokens) for text in texts)
            bar.set_postfix({"tokens/s": f"{tokens / (time.perf_counter() - begin):.0f}"}, refresh=False)
            bar.update(len(rows))

    done.gather()
    found = {name: done.all(task.name, name, len(batches)) for name in methods}
    results = [
        {
            "name": name,
            **_settings(methods[name], policies[name]),
            "task": task.name,
            "metric": task.score([line["text"] for line in lines], examples),
            **_cost(model, lines, policies[name], lengths),
            "num_examples": len(examples),
        }
        for name, lines in found.items()
    ]
    compare_with_full(results)
    return results, [line for lines in found.values() for line in lines]


_BATCHES = 8
"""Rows that a unit of work gives each slot to decode."""


def _decode(
    model: Model, cfg: DecodeConfig, rows: Sequence[list[int]], slots: int
) -> tuple[list[GeneratedText], dict[str, float]]:
    """Texts in the order of the rows, and seconds that each took on average."""
    begin = time.perf_counter()
    if slots == 1:  # nobody to make room for: preparing a slot would count as decoding
        (row,) = rows
        encoded = jax.block_until_ready(encode(model, [row], np.ones((1, len(row)))))
        encode_s = time.perf_counter() - begin
        texts = [to_text(model, jax.tree.map(gathered, decode(model, encoded, cfg)), 0)]
    else:
        engine = Engine(model, cfg, slots=slots, max_source_length=max(map(len, rows)))
        texts, encode_s = engine.texts(rows), engine.work["encode_s"]
    seconds = time.perf_counter() - begin
    return texts, {"decode_s": (seconds - encode_s) / len(rows), "encode_s": encode_s / len(rows)}


def compare_with_full(rows: Sequence[dict[str, Any]]) -> None:
    """Notes in each row how many times as fast as the full model's row it is; None without one."""
    full = next((row for row in rows if row["method"] == "full"), None)
    for row in rows:
        row["speed_up"] = full["ms_per_token"] / row["ms_per_token"] if full else None


def _settings(cfg: DecodeConfig, policy: Any) -> dict[str, Any]:
    """The settings that matter to the method; None where one does not."""
    calm, dvp, oracle = (isinstance(policy, kind) for kind in (CALM, DVP, Oracle))
    rule = cfg.prune_rule if dvp else None
    per_depth = cfg.thresholds_per_depth if calm else None
    return {
        "method": cfg.method,
        "threshold": cfg.threshold if calm and per_depth is None else None,
        "thresholds_per_depth": per_depth,
        "decay_temperature": cfg.decay_temperature if calm else None,
        "confidence": cfg.confidence if calm else None,
        "min_exit_layer": cfg.min_exit_layer if calm or oracle else None,
        "prune_layer": cfg.prune_layer if dvp else None,
        "prune_size": cfg.prune_size if dvp else None,
        "prune_rule": rule,
        "prune_mass": cfg.prune_mass if rule == "mass" else None,
        "prune_size_min": cfg.prune_size_min if rule == "decay" else None,
        "final_vocab": cfg.final_vocab if dvp else None,
        "static_exit_layer": cfg.static_exit_layer if cfg.method == "static" else None,
        "max_waiting": cfg.max_waiting if calm else None,
        "oracle_states": cfg.oracle_states if oracle else None,
    }


def _cost(model: Model, lines: Sequence[Line], policy: Any, source_lengths: np.ndarray) -> dict[str, Any]:
    """Exits, FLOPs and time per token; `source_lengths` are those of the examples."""
    source_length = np.repeat(source_lengths, [len(line["tokens"]) for line in lines])
    exit_layers = np.concatenate([line["exit_layers"] for line in lines])
    return {
        "mean_exit_layer": float(exit_layers.mean()),
        "num_layers": model.config.num_decoder_layers,
        "confidence_flops_per_token": float(paper_confidence_flops(exit_layers, policy, model.config).mean()),
        "unembedding_flops_per_token": float(unembedding_flops(exit_layers, policy, model.config).mean()),
        "layer_flops_per_token": float(
            decoder_layer_flops(exit_layers, policy, model.config, source_length).mean()
        ),
        "ms_per_token": sum(line["decode_s"] for line in lines) * 1e3 / len(exit_layers),
        "num_tokens": len(exit_layers),
        "encoder_ms_per_example": sum(line["encode_s"] for line in lines) * 1e3 / len(lines),
    }


def results_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows of results.json as a Markdown table, or one under each task's name where there are several."""
    tables = {
        task: _task_table([row for row in rows if row["task"] == task])
        for task in dict.fromkeys(row["task"] for row in rows)
    }
    if len(tables) == 1:
        return next(iter(tables.values()))
    return "\n\n".join(f"{task}:\n\n{table}" for task, table in tables.items())


def _task_table(rows: Sequence[Mapping[str, Any]]) -> str:
    metrics = list(rows[0]["metric"])
    head = ["method", "settings", *metrics, "mean exit", "confidence FLOPs/token", "ms/token", "speed-up"]
    lines = ["| " + " | ".join(head) + " |", "| --- | --- |" + " ---: |" * (len(head) - 2)]
    for row in rows:
        cells = [row["method"], describe(row), *(f"{row['metric'][name]:.2f}" for name in metrics)]
        cells += [f"{row['mean_exit_layer']:.2f} of {row['num_layers']}"]
        cells += [f"{row['confidence_flops_per_token']:.3g}", f"{row['ms_per_token']:.2f}"]
        cells += ["" if row["speed_up"] is None else f"{row['speed_up']:.2f}x"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def describe(row: Mapping[str, Any]) -> str:
    """A row's settings in a few words: the measure where it is not the usual one, min exit where it is not p."""
    short = {
        "threshold": "threshold",
        "decay_temperature": "decay",
        "min_exit_layer": "min exit",
        "prune_layer": "p",
        "prune_size": "K",
        "prune_size_min": "K min",
        "prune_mass": "mass",
        "static_exit_layer": "exit",
        "max_waiting": "waiting",
        "oracle_states": "states",
    }
    if row["min_exit_layer"] == row["prune_layer"]:
        del short["min_exit_layer"]
    words = [f"{label} {row[name]}" for name, label in short.items() if row[name] is not None]
    if row["thresholds_per_depth"] is not None:
        words.insert(0, "thresholds " + " ".join(f"{value:.3g}" for value in row["thresholds_per_depth"]))
    if row["confidence"] not in (None, DecodeConfig.confidence):
        words.insert(0, row["confidence"])
    return ", ".join(words)
