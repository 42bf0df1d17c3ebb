"""Functions that several configs share: evaluations, sweeps and fine-tuning."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from dvp_jax.train.trainer import make_train_config


def evaluation(
    *,
    tasks: Mapping[str, Mapping[str, Any]],
    threshold: float,
    prune_sizes: tuple[int, ...],
    prune_layers: tuple[int, ...] = (2,),
    model: str | None = None,
) -> ConfigDict:
    """An evaluation of full, of calm, and of dvp with each prune size, at batch 1.

    Args:
        tasks: settings of each task, under its name.
        threshold: of the confidence of calm and dvp.
        prune_sizes: K, one dvp row for each.
        prune_layers: p, with calm and dvp rows for each. It is also the first exit depth, of calm too. Rows of
            the first p are called "calm" and "dvp_64", those of another "calm_p7" and "dvp_p7_64".
        model: folder or hub id of the checkpoint; None leaves it to the command line.
    """
    methods: dict[str, dict[str, Any]] = {"full": {"method": "full"}}
    for prune_layer in prune_layers:
        suffix = "" if prune_layer == prune_layers[0] else f"_p{prune_layer}"
        exits = {"threshold": threshold, "min_exit_layer": prune_layer}
        methods[f"calm{suffix}"] = {"method": "calm", **exits}
        for size in prune_sizes:
            pruning = {"prune_layer": prune_layer, "prune_size": size}
            methods[f"dvp{suffix}_{size}"] = {"method": "dvp", **pruning, **exits}
    return ConfigDict(
        {
            "model": config_dict.placeholder(str) if model is None else model,
            "dtype": "float32",
            "tasks": {name: _settable(task) for name, task in tasks.items()},
            "methods": methods,
            "batch_size": 1,
            "limit": config_dict.placeholder(int),
            "mesh": config_dict.placeholder(tuple),  # (data, model): devices to decode on
            "confidence_time": False,  # whether each text is decoded again with nothing asked, to time confidence
            "explore": 100,  # how many examples of each task report.html shows token by token
        }
    )


def paper(task: str, model: str, *, prune_layers: tuple[int, ...] = (2,)) -> ConfigDict:
    """The paper's settings: full, calm and dvp with K = 64 and 512, threshold 0.9, batch 1.

    Args:
        task: "squad" or "samsum".
        model: hub id of a T5-large.
        prune_layers: p, which is also the first exit depth. The fine-tuned models work at p = 2; the pre-trained
            one collapses there, so it needs p = 7 too.

    Source: arXiv 2410.18952, experiments; p = 7 and 2 from blogpost.md of GitHub's joanvelja/Confidently_Exiting.
    """
    tasks = {task: {"path": None}}
    return evaluation(model=model, tasks=tasks, threshold=0.9, prune_sizes=(64, 512), prune_layers=prune_layers)


def sweep(evaluated: ConfigDict, grid: Mapping[str, Mapping[str, Sequence[Any]]]) -> ConfigDict:
    """A sweep over a grid of settings, with the model and tasks of an evaluation.

    Args:
        evaluated: from `evaluation`. Its methods are replaced by the grid.
        grid: for each method, lists of values by name of a field of `DecodeConfig`.
    """
    config = ConfigDict(evaluated)  # a copy; placeholders stay settable on the command line
    del config.methods
    config.explore = 20
    config.sweep = {method: dict(fields) for method, fields in grid.items()}
    return config


def finetuning(
    *,
    tasks: Mapping[str, Mapping[str, Any]],
    validation_tasks: Mapping[str, Mapping[str, Any]],
    train: Mapping[str, Any],
    model: str | None = None,
    shape: Mapping[str, Any] | None = None,
) -> ConfigDict:
    """A training run.

    Args:
        tasks: settings of each task to train on, under its name.
        validation_tasks: the same for validation.
        train: fields of `TrainConfig`; the others keep their defaults.
        model: folder or hub id of the checkpoint to start from; None leaves it to the command line, and trains
            from scratch if that gives none.
        shape: fields of `T5Config` of a model that is trained from scratch, with a tokenizer of its own.
    """
    return ConfigDict(
        {
            "model": config_dict.placeholder(str) if model is None else model,
            "shape": {} if shape is None else dict(shape),
            "tokenizer": config_dict.placeholder(str),
            "tasks": {name: _settable(task) for name, task in tasks.items()},
            "validation_tasks": {name: _settable(task) for name, task in validation_tasks.items()},
            "limit": config_dict.placeholder(int),
            "validation_limit": config_dict.placeholder(int),
            "mesh": config_dict.placeholder(tuple),  # (data, model): devices to train on
            "train": _train_fields(train),
        }
    )


def t5_large(task: str, *, steps: int) -> ConfigDict:
    """Fine-tuning of T5-large on a data set of the hub, at T5's own settings.

    Args:
        task: "squad" or "samsum".
        steps: number of optimiser steps.
    """
    return finetuning(
        model="google-t5/t5-large",
        tasks={task: {"split": "train", "path": None}},
        validation_tasks={task: {"split": "validation", "path": None}},
        train={
            "steps": steps,
            "batch_size": 32,
            "accumulation": 4,
            "loss": "weighted",
            "optimizer": "adafactor",
            "learning_rate": 1e-3,
            "dtype": "bfloat16",
        },
    )


def _settable(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields, with placeholders for None, so that the command line can set them to a text."""
    return {name: config_dict.placeholder(str) if value is None else value for name, value in fields.items()}


def _train_fields(train: Mapping[str, Any]) -> dict[str, Any]:
    """All fields of `TrainConfig`, so that the command line can set each of them."""
    fields = dataclasses.asdict(make_train_config(train))
    return {name: config_dict.placeholder(float) if value is None else value for name, value in fields.items()}
