"""Decodes a task with several methods side by side and scores the texts."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from dvp_jax.data.task import Example, Task
from dvp_jax.decode.api import decode, decode_policy, encode
from dvp_jax.decode.config import METHODS, DecodeConfig, make_config
from dvp_jax.decode.engine import Engine
from dvp_jax.decode.text import GeneratedText, source_bucket, to_text, tokenize, unpad_rows
from dvp_jax.evaluate.confidence_time import replay_config, replay_thresholds
from dvp_jax.evaluate.results import compare_with_full, finite, result_row
from dvp_jax.runs.predictions import Line, Predictions
from dvp_jax.t5.load import Model
from dvp_jax.t5.sharding import to_host


def make_methods(settings: Mapping[str, Mapping[str, Any]], max_new_tokens: int) -> dict[str, DecodeConfig]:
    """Makes a config of each named group of settings, "full" first, then by method and K.

    Args:
        settings: for each name, fields of `DecodeConfig`.
        max_new_tokens: used where the settings do not have this field.

    Raises:
        ValueError: an unknown field or an impossible value.
    """
    for name in settings:
        if "/" in name or not name.isprintable():
            raise ValueError(f"methods has {name!r}; allowed: names that can be printed, without /")
    methods = {
        name: make_config({"max_new_tokens": max_new_tokens, **fields}, f"methods.{name}")
        for name, fields in settings.items()
    }
    # Policies of the user's own come last.
    order = {method: index for index, method in enumerate(METHODS)}
    return dict(
        sorted(methods.items(), key=lambda item: (order.get(item[1].name, len(order)), item[1].prune_size or 0))
    )


def evaluate(
    model: Model,
    task: Task,
    methods: Mapping[str, DecodeConfig],
    *,
    batch_size: int = 1,
    limit: int | None = None,
    confidence_time: bool = False,
    predictions: Predictions | None = None,
) -> tuple[list[dict[str, Any]], list[Line]]:
    """Decodes every example with every method and scores the texts.

    All methods decode one batch, then all decode the next, so that a machine whose speed drifts treats them alike.
    A batch has more rows than are decoded together: a finished row makes room for the next. Every shape is
    compiled before the clock starts. Times are decoding times without the encoder, whose time is the same for all
    methods and is reported beside them.

    With several processes each decodes a part of the batches, or all decode together if the model is on a mesh of
    all their devices. Each process returns the same.

    Args:
        model: a model with a tokenizer.
        task: gives the examples and scores the texts.
        methods: settings by name. The speed-up is relative to the one whose method is "full", if there is one.
        batch_size: how many rows are decoded together.
        limit: decode the first `limit` examples only; None for all.
        confidence_time: whether to decode each text of a method that asks again with nothing asked, to tell how
            long confidence takes (`dvp_jax.evaluate.confidence_time`). Needs batch_size 1.
        predictions: texts that are not decoded again. Newly decoded texts are added. None starts without any.

    Returns:
        Rows of results.json, one for each method, and lines of predictions.jsonl, by method and example.

    Raises:
        ValueError: no methods, batch_size or limit below 1, batch_size above 1 with confidence_time, settings that
            do not fit the model, bad data, or more processes than batches.
        OSError: a data file is missing, or the processes do not share a folder.
    """
    _check_arguments(methods, batch_size, limit, confidence_time)
    policies = {name: decode_policy(model, cfg) for name, cfg in methods.items()}
    examples = task.load()[:limit]
    predictions = Predictions() if predictions is None else predictions
    sources = unpad_rows(*tokenize(model, [example.prompt for example in examples], task.max_source_length))
    batches = _plan(examples, sources, batch_size)
    _check_parts(batches, predictions.process.parts, task.name, batch_size)

    unfinished = [
        batch
        for batch in batches
        if any(predictions.get(task.name, name, batch.index) is None for name in methods)
    ]
    to_decode = predictions.process.part(unfinished)
    replays = {name: replay_config(model, cfg) if confidence_time else None for name, cfg in methods.items()}
    _compile(model, methods, replays, to_decode, batch_size)
    _decode_batches(model, task.name, methods, replays, to_decode, batch_size, predictions, len(examples))
    predictions.gather()

    lines = {name: predictions.all(task.name, name, len(batches)) for name in methods}
    source_lengths = np.array([len(source) for source in sources])
    rows = [
        result_row(
            name,
            cfg,
            policies[name],
            model.config,
            task=task.name,
            metric=task.score([line["text"] for line in lines[name]], examples),
            lines=lines[name],
            source_lengths=source_lengths,
        )
        for name, cfg in methods.items()
    ]
    compare_with_full(rows)
    return rows, [line for name in methods for line in lines[name]]


_ROWS_PER_SLOT = 8
"""How many rows each slot of an engine decodes in one batch of `_plan`."""


@dataclasses.dataclass(frozen=True)
class _Batch:
    """Examples that one method decodes before the next method does."""

    index: int
    start: int  # place of the first example
    examples: Sequence[Example]
    sources: Sequence[list[int]]  # token ids of the prompts


def _plan(examples: Sequence[Example], sources: Sequence[list[int]], batch_size: int) -> list[_Batch]:
    # With a batch size of 1 no row waits for another, so each example is a batch.
    size = batch_size if batch_size == 1 else batch_size * _ROWS_PER_SLOT
    return [
        _Batch(index, start, examples[start : start + size], sources[start : start + size])
        for index, start in enumerate(range(0, len(sources), size))
    ]


def _check_arguments(
    methods: Mapping[str, DecodeConfig], batch_size: int, limit: int | None, confidence_time: bool
) -> None:
    if not methods:
        raise ValueError("methods is empty; allowed: at least one")
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; allowed: at least 1")
    if confidence_time and batch_size > 1:
        raise ValueError(f"batch_size is {batch_size}; allowed with confidence_time: 1")


def _check_parts(batches: Sequence[_Batch], parts: int, task: str, batch_size: int) -> None:
    if len(batches) < parts:
        num_examples = sum(len(batch.examples) for batch in batches)
        raise ValueError(
            f"num_processes is {parts}; allowed: at most {len(batches)}, the parts that {task} is "
            f"decoded in ({num_examples} examples, batch_size {batch_size})"
        )


_Replays = Mapping[str, DecodeConfig | None]
"""For each method, what decodes its texts again with nothing asked, if anything does."""


def _compile(
    model: Model,
    methods: Mapping[str, DecodeConfig],
    replays: _Replays,
    batches: Sequence[_Batch],
    batch_size: int,
) -> None:
    """Decodes a row of each source length bucket with each method, so that every program is compiled."""
    buckets = {source_bucket(len(source)): source for batch in batches for source in batch.sources}
    for source in tqdm(buckets.values(), desc="compiling", unit="shape"):
        for cfg in methods.values():
            for count in {1, min(2, batch_size)}:  # the numbers of rows that an engine encodes together
                _decode(model, cfg, [source] * count, batch_size)
        for replay in filter(None, replays.values()):
            _replay_s(model, replay, source, (), ())


def _decode_batches(
    model: Model,
    task: str,
    methods: Mapping[str, DecodeConfig],
    replays: _Replays,
    batches: Sequence[_Batch],
    batch_size: int,
    predictions: Predictions,
    num_examples: int,
) -> None:
    """Decodes the batches with every method that has no predictions for them, and shows progress."""
    num_tokens, begin = 0, time.perf_counter()
    with tqdm(total=num_examples, desc=task, unit="example") as bar:
        bar.update(num_examples - sum(len(batch.examples) for batch in batches))
        for batch in batches:
            for name, cfg in methods.items():
                if predictions.get(task, name, batch.index) is None:
                    # Each example draws with a seed of its own, whatever the batch size.
                    own = dataclasses.replace(cfg, seed=cfg.seed + batch.start)
                    texts, seconds = _decode(model, own, batch.sources, batch_size)
                    if replay := replays[name]:
                        (source,), (text,) = batch.sources, texts
                        seconds["replay_s"] = _replay_s(model, replay, source, text.tokens, text.exit_layers)
                    lines = [
                        {
                            "id": example.id,
                            **dataclasses.asdict(text),
                            "confidences": finite(text.confidences),
                            **seconds,
                        }
                        for example, text in zip(batch.examples, texts, strict=True)
                    ]
                    predictions.add(task, name, batch.index, lines)
                    num_tokens += sum(len(text.tokens) for text in texts)
            bar.set_postfix({"tokens/s": f"{num_tokens / (time.perf_counter() - begin):.0f}"}, refresh=False)
            bar.update(len(batch.examples))


def _replay_s(
    model: Model, replay: DecodeConfig, source: list[int], tokens: Sequence[int], exit_layers: Sequence[int]
) -> float:
    """The seconds that a text takes with nothing asked; of any text, with its first tokens and exits given."""
    num_layers = model.config.num_decoder_layers
    thresholds = replay_thresholds(tokens, exit_layers, replay.max_new_tokens, num_layers)
    return _decode(model, replay, [source], 1, thresholds)[1]["decode_s"]


def _decode(
    model: Model,
    cfg: DecodeConfig,
    sources: Sequence[list[int]],
    batch_size: int,
    thresholds: Float[np.ndarray, "tokens depths"] | None = None,
) -> tuple[list[GeneratedText], dict[str, float]]:
    """Decodes token ids of prompts, with a batch size of 1 by thresholds that may be given.

    Returns:
        The texts in the order of the prompts, and seconds per text: "decode_s" and "encode_s".
    """
    begin = time.perf_counter()
    if batch_size == 1:  # without an engine: preparing its slot would count as decoding time
        (source,) = sources
        encoded = jax.block_until_ready(encode(model, [source], np.ones((1, len(source)))))
        encode_s = time.perf_counter() - begin
        texts = [to_text(model, jax.tree.map(to_host, decode(model, encoded, cfg, thresholds)), 0)]
    else:
        engine = Engine(model, cfg, slots=batch_size, max_source_length=max(map(len, sources)))
        texts, encode_s = engine.texts(sources), engine.work["encode_s"]
    seconds = time.perf_counter() - begin
    return texts, {"decode_s": (seconds - encode_s) / len(sources), "encode_s": encode_s / len(sources)}
