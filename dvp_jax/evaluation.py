"""Runs several ways of decoding side by side over one task: quality, exits, FLOPs and time."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from dvp_jax.data import make_task
from dvp_jax.data.task import Example, Task
from dvp_jax.data.tokens import source_batches
from dvp_jax.decode.config import METHODS, DecodeConfig
from dvp_jax.decode.generate import (
    GeneratedText,
    batch_bucket,
    decode,
    encode,
    source_bucket,
    to_text,
    tokenize,
)
from dvp_jax.exits.flops import decoder_layer_flops, paper_confidence_flops, unembedding_flops
from dvp_jax.exits.policy import CALM, DVP
from dvp_jax.files import prepare_workdir, write_json, write_whole
from dvp_jax.t5.load import Model, load_model


@dataclasses.dataclass
class MethodRun:
    """What one way of decoding produced over the examples so far."""

    cfg: DecodeConfig
    texts: list[GeneratedText] = dataclasses.field(default_factory=list)
    decode_s: float = 0.0


def make_methods(settings: Mapping[str, Mapping[str, Any]], max_new_tokens: int) -> dict[str, DecodeConfig]:
    """Named settings as configs, "full" first and by K.

    Args:
        settings: fields of `DecodeConfig` under the name of each row.
        max_new_tokens: where a row does not say.

    Raises:
        ValueError: a field that there is not, or an impossible value.
    """
    allowed = [field.name for field in dataclasses.fields(DecodeConfig)]
    methods = {}
    for name, fields in settings.items():
        if unknown := [field for field in fields if field not in allowed]:
            raise ValueError(f"methods.{name} has no {', '.join(unknown)}; allowed: {', '.join(allowed)}")
        methods[name] = DecodeConfig(**{"max_new_tokens": max_new_tokens, **fields})
    return dict(sorted(methods.items(), key=lambda item: (METHODS.index(item[1].method), item[1].prune_size)))


def evaluate(
    model: Model,
    task: Task,
    methods: Mapping[str, DecodeConfig],
    *,
    batch_size: int = 1,
    limit: int | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Decodes every example in every way and scores the texts.

    Every batch is decoded by all methods before the next batch, so that a machine whose speed drifts treats
    them alike. Every shape is compiled before the clock starts. Times are of decoding, without the encoder,
    which costs all methods the same and is reported beside them.

    Args:
        model: with a tokenizer.
        task: what to decode.
        methods: names and settings; the one whose method is "full", if any, is what the others' speed-up is over.
        batch_size: rows decoded together.
        limit: number of examples, from the first; None for all.

    Returns:
        Rows of results.json, one a method, and rows of predictions.jsonl.

    Raises:
        ValueError: no methods; batch_size or limit below 1; settings that do not fit the model; bad data.
        FileNotFoundError: a data file is missing.
    """
    if not methods:
        raise ValueError("methods is empty; allowed: at least one")
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; allowed: at least 1")
    config = model.config
    policies = {name: cfg.policy(config.num_decoder_layers, config.vocab_size) for name, cfg in methods.items()}
    examples = task.load()[:limit]

    ids, mask = tokenize(model, [example.prompt for example in examples], task.max_source_length)
    lengths = mask.sum(axis=1)
    batches = [source for _, *source in source_batches(ids, mask, batch_size)]
    shapes = {(batch_bucket(len(ids)), source_bucket(ids.shape[1])): (ids, mask) for ids, mask in batches}
    for source in tqdm(shapes.values(), desc="compiling", unit="shape"):
        encoded = encode(model, *source)
        for cfg in methods.values():
            jax.block_until_ready(decode(model, encoded, cfg))

    runs = {name: MethodRun(cfg) for name, cfg in methods.items()}
    encoder_s, tokens, begin = 0.0, 0, time.perf_counter()
    with tqdm(total=len(examples), desc=task.name, unit="example") as bar:
        for source in batches:
            clock = time.perf_counter()
            encoded = jax.block_until_ready(encode(model, *source))
            encoder_s += time.perf_counter() - clock
            for run in runs.values():
                clock = time.perf_counter()
                out = jax.tree.map(np.asarray, decode(model, encoded, run.cfg))
                run.decode_s += time.perf_counter() - clock
                run.texts += [to_text(model, out, row) for row in range(len(source[0]))]
                tokens += int(out.lengths.sum())
            bar.set_postfix({"tokens/s": f"{tokens / (time.perf_counter() - begin):.0f}"}, refresh=False)
            bar.update(len(source[0]))

    rows = [
        {
            "name": name,
            **_settings(run.cfg, policies[name]),
            "task": task.name,
            "metric": task.score([text.text for text in run.texts], examples),
            **_cost(model, run, policies[name], lengths),
            "encoder_ms_per_example": encoder_s * 1e3 / len(examples),
            "num_examples": len(examples),
        }
        for name, run in runs.items()
    ]
    full = next((row for row in rows if row["method"] == "full"), None)
    for row in rows:
        row["speed_up"] = full["ms_per_token"] / row["ms_per_token"] if full else None
    return rows, list(_predictions(task, examples, runs))


def _settings(cfg: DecodeConfig, policy: Any) -> dict[str, Any]:
    """The settings that matter to the method; None where one does not."""
    calm, dvp = isinstance(policy, CALM), isinstance(policy, DVP)
    return {
        "method": cfg.method,
        "threshold": cfg.threshold if calm else None,
        "decay_temperature": cfg.decay_temperature if calm else None,
        "confidence": cfg.confidence if calm else None,
        "min_exit_layer": cfg.min_exit_layer if calm else None,
        "prune_layer": cfg.prune_layer if dvp else None,
        "prune_size": cfg.prune_size if dvp else None,
        "final_vocab": cfg.final_vocab if dvp else None,
        "static_exit_layer": cfg.static_exit_layer if cfg.method == "static" else None,
    }


def _cost(model: Model, run: MethodRun, policy: Any, source_lengths: np.ndarray) -> dict[str, Any]:
    """Exits, FLOPs and time per token; `source_lengths` are those of the examples."""
    source_length = np.repeat(source_lengths, [len(text.tokens) for text in run.texts])
    exit_layers = np.concatenate([text.exit_layers for text in run.texts])
    return {
        "mean_exit_layer": float(exit_layers.mean()),
        "num_layers": model.config.num_decoder_layers,
        "confidence_flops_per_token": float(paper_confidence_flops(exit_layers, policy, model.config).mean()),
        "unembedding_flops_per_token": float(unembedding_flops(exit_layers, policy, model.config).mean()),
        "layer_flops_per_token": float(decoder_layer_flops(exit_layers, model.config, source_length).mean()),
        "ms_per_token": run.decode_s * 1e3 / len(exit_layers),
        "num_tokens": len(exit_layers),
    }


def _predictions(
    task: Task, examples: Sequence[Example], runs: Mapping[str, MethodRun]
) -> Iterable[dict[str, Any]]:
    for name, run in runs.items():
        for example, text in zip(examples, run.texts, strict=True):
            yield {"task": task.name, "id": example.id, "name": name, **dataclasses.asdict(text)}


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
        cells = [row["method"], _describe(row), *(f"{row['metric'][name]:.2f}" for name in metrics)]
        cells += [f"{row['mean_exit_layer']:.2f} of {row['num_layers']}"]
        cells += [f"{row['confidence_flops_per_token']:.3g}", f"{row['ms_per_token']:.2f}"]
        cells += ["" if row["speed_up"] is None else f"{row['speed_up']:.2f}x"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _describe(row: Mapping[str, Any]) -> str:
    short = {
        "threshold": "threshold",
        "decay_temperature": "decay",
        "min_exit_layer": "min exit",
        "prune_layer": "p",
        "prune_size": "K",
        "static_exit_layer": "exit",
    }
    return ", ".join(f"{label} {row[name]}" for name, label in short.items() if row[name] is not None)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What an evaluation config names, checked and loaded."""

    workdir: Path
    model: Model
    tasks: list[tuple[Task, dict[str, DecodeConfig]]]  # with the methods to decode each


def set_up(config: Any, workdir: str | Path, *, only: str | None = None) -> Setup:
    """Checks an evaluation config and the folder for its results, and only then loads the model.

    Args:
        config: as experiments/configs/common.evaluation makes it: model, dtype, tasks and methods are read.
        workdir: made if it is not there.
        only: leaves out settings of other methods than this one; None for all of them.

    Raises:
        ValueError: no model is named, an unknown task or field, an impossible value, no settings of the method
            asked for, a bad checkpoint.
        OSError: workdir cannot be made or written.
    """
    if not config.model:
        raise ValueError("config.model is not set; allowed: a checkpoint folder or a hub id (--config.model=...)")
    folder = prepare_workdir(workdir)
    tasks = [make_task(name, **fields) for name, fields in config.tasks.items()]
    methods = [make_methods(config.methods, task.max_new_tokens) for task in tasks]
    if only is not None:
        methods = [{name: cfg for name, cfg in ways.items() if cfg.method == only} for ways in methods]
        if not all(methods):
            raise ValueError(
                f"config.methods has {', '.join(config.methods)}, none of method {only!r}; allowed: one"
            )
    model = load_model(config.model, config.dtype, progress=True)
    return Setup(folder, model, list(zip(tasks, methods, strict=True)))


def write_results(
    workdir: Path,
    rows: Sequence[Mapping[str, Any]],
    predictions: Iterable[Mapping[str, Any]],
    *,
    model: str,
    config: Mapping[str, Any],
) -> None:
    """Writes predictions.jsonl and then results.json, each whole or not at all.

    Args:
        workdir: exists.
        rows: from `evaluate`.
        predictions: from `evaluate`.
        model: name of the checkpoint.
        config: what was run, as JSON.
    """
    lines = (json.dumps(prediction, ensure_ascii=False) + "\n" for prediction in predictions)
    write_whole(workdir / "predictions.jsonl", lines)
    write_json(workdir / "results.json", {"rows": rows}, model=model, config=config)
