"""A whole training run: model, data, training, plot and export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dvp_jax.data import make_task
from dvp_jax.report.plots import accuracy_per_depth
from dvp_jax.runs import processes
from dvp_jax.runs.files import prepare_workdir, write_whole
from dvp_jax.runs.provenance import code_fingerprint, versions
from dvp_jax.t5.load import Model, load_model, load_tokenizer, save_model, shard_model
from dvp_jax.t5.sharding import make_mesh
from dvp_jax.train.batches import batches_of
from dvp_jax.train.scratch import new_model, train_tokenizer
from dvp_jax.train.trainer import check_batch, make_train_config, read_metrics, train


def finetune(config: Mapping[str, Any], workdir: str | Path, *, resume: bool = False) -> Path:
    """Trains what `config` describes and writes a Hugging Face folder.

    Args:
        config: "model" is a checkpoint folder or hub id, or None to start from scratch with "shape" (fields of
            `T5Config`) and "tokenizer" (a folder, or None to train one of shape.vocab_size pieces on the
            training texts); "tasks" and "validation_tasks" are lists of tasks as in evaluation; "limit" and
            "validation_limit" bound the examples of each; "train" has the fields of `TrainConfig`; "mesh" is the
            sizes of the axes "data" and "model" of a mesh of devices, or None: one device, or of several
            processes all of theirs along "data".
        workdir: gets checkpoints/, metrics.jsonl, accuracy_per_depth.svg, config.json and model/.
        resume: go on from the latest checkpoint in the workdir.

    Returns:
        The folder of the exported model.

    Raises:
        FileExistsError: the workdir holds a run and resume is False, or a finished run.
        FileNotFoundError: a data file or the checkpoint is missing.
        ValueError: an impossible setting, an empty or malformed data set, another config or other arrays
            than those of the run to resume, a loss that is no longer finite, or processes that differ in code,
            versions, config, model or data.
        OSError: the workdir cannot be written.
    """
    cfg = make_train_config(config["train"])
    workdir = prepare_workdir(workdir)
    if (workdir / "model" / "config.json").exists():
        raise FileExistsError(f"{workdir} holds a finished run; allowed: another workdir")
    if (workdir / "config.json").exists() and not resume:
        raise FileExistsError(f"{workdir} holds a run; allowed: another workdir, or --resume")
    if not config["tasks"]:
        raise ValueError("tasks is empty; allowed: at least one")
    for name in ("limit", "validation_limit"):
        if config[name] is not None and config[name] < 1:
            raise ValueError(f"{name} is {config[name]}; allowed: at least 1")
    me = processes.current()
    me.agree({"versions": versions(), "config": config, "code": code_fingerprint(), "resume": resume})
    tasks = [make_task(name, **fields) for name, fields in config["tasks"].items()]
    validation_tasks = [make_task(name, **fields) for name, fields in config["validation_tasks"].items()]

    mesh = make_mesh(config.get("mesh"), all_processes=True)
    if config["model"]:
        model = load_model(config["model"], progress=True, mesh=mesh)
    else:
        model = shard_model(_scratch(config, tasks, cfg.seed), mesh)
    check_batch(model, cfg)
    cfg.depth_weights(model.config.num_decoder_layers)  # before the data are tokenised
    batches = batches_of(model, tasks, batch_size=cfg.batch_size, seed=cfg.seed, limit=config["limit"])
    validation = None
    if validation_tasks:
        validation = batches_of(
            model, validation_tasks, batch_size=cfg.batch_size, limit=config["validation_limit"]
        )
    me.agree({"model_fingerprint": model.fingerprint, "data_fingerprint": batches.fingerprint})
    if resume and (workdir / "config.json").exists():
        _check_same(
            json.loads((workdir / "config.json").read_text(encoding="utf-8")), json.loads(json.dumps(config))
        )
    me.wait()
    if me.first:
        write_whole(workdir / "config.json", [json.dumps(config, indent=2) + "\n"])
    best = train(model, batches, validation, cfg, workdir, resume=resume)
    if me.first:
        _plot(workdir)
    save_model(workdir / "model", best)
    return workdir / "model"


def _plot(workdir: Path) -> None:
    if curves := [line for line in read_metrics(workdir / "metrics.jsonl") if line["split"] == "validation"]:
        accuracy_per_depth(
            {f"step {line['step']}": line["accuracy"] for line in curves[:: max(1, len(curves) // 6)]},
            workdir / "accuracy_per_depth.svg",
        )


def _check_same(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to go on with another run than the one that was interrupted; it may be longer or shorter.

    Raises:
        ValueError: names each field that differs, with both values.
    """
    may_differ = {"mesh", "train.steps", "train.log_every", "train.checkpoint_every", "train.keep"}
    differs = {name: both for name, both in processes.differences(before, now).items() if name not in may_differ}
    if differs:
        raise ValueError(
            "config differs from that of the run to resume: "
            + "; ".join(f"{name} is {new!r}, was {old!r}" for name, (old, new) in differs.items())
        )


def _scratch(config: Mapping[str, Any], tasks: list[Any], seed: int) -> Model:
    """A model with random parameters, and its tokenizer."""
    shape = dict(config["shape"])
    if config["tokenizer"] is not None:
        tokenizer = load_tokenizer(Path(config["tokenizer"]))
        if tokenizer is None:
            raise FileNotFoundError(f"tokenizer is {config['tokenizer']!r}, a folder without a tokenizer")
    else:
        if "vocab_size" not in shape:
            raise ValueError("shape has no vocab_size; allowed: the number of pieces of the tokenizer to train")
        examples = [example for task in tasks for example in task.load()[: config["limit"]]]
        texts = [text for example in examples for text in (example.prompt, *example.references)]
        tokenizer = train_tokenizer(texts, shape["vocab_size"])
    return new_model(shape, tokenizer, seed)
