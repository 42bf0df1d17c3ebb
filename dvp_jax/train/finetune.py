"""A whole training run: from a config to an exported model."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jax.sharding import Mesh

from dvp_jax.data import make_task
from dvp_jax.data.task import LoadedTask, Task
from dvp_jax.report.plots import accuracy_per_depth
from dvp_jax.runs import processes
from dvp_jax.runs.config import TRAINING, check_fields
from dvp_jax.runs.files import check_free, lock_workdir, read_json, write_json
from dvp_jax.runs.provenance import code_fingerprint, digest, versions
from dvp_jax.t5.load import Model, load_model, load_tokenizer, save_model, shard_model
from dvp_jax.t5.sharding import make_mesh
from dvp_jax.train.batches import Batches, batches_of
from dvp_jax.train.scratch import new_model, train_tokenizer
from dvp_jax.train.trainer import TrainConfig, check_batch, check_steps, make_train_config, read_metrics, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAY_CHANGE = {"mesh", "train.steps", "train.log_every", "train.checkpoint_every", "train.keep"}
"""Fields of the config that a resumed run may change."""
_MIN_CURVES = 6


def finetune(config: Mapping[str, Any], workdir: str | Path, *, resume: bool = False) -> Path:
    """Trains a model as the config says, and exports the best one as a Hugging Face folder.

    Args:
        config: has these fields:

            - "model": a checkpoint folder or hub id, or None to start from random parameters.
            - "shape": the fields of `T5Config`, for a model with random parameters.
            - "tokenizer": a folder, or None to train a tokenizer of shape.vocab_size pieces on the training texts.
            - "tasks", "validation_tasks": the tasks, as in evaluation.
            - "limit", "validation_limit": the number of examples of each task, from the first; None for all.
            - "train": the fields of `TrainConfig`.
            - "mesh": the sizes of the axes "data" and "model" of a mesh of devices. None is one device, or all
              devices of several processes along "data".
        workdir: gets checkpoints/, metrics.jsonl, accuracy_per_depth.svg, config.json and model/.
        resume: continue from the latest whole checkpoint in the workdir.

    Returns:
        The folder of the exported model.

    Raises:
        FileExistsError: the workdir holds a finished run, or an unfinished one and resume is False.
        FileNotFoundError: a data file or the checkpoint is missing.
        ValueError: an impossible setting, an empty or malformed data set, a config, weights, tokenizer or data
            that differ from those of the run to resume, a loss that is not finite, or processes that differ in
            code, versions, config, model or data.
        OSError: the workdir cannot be written, or another run has locked it.
    """
    check_fields(config, TRAINING)
    cfg = make_train_config(config["train"])
    process = processes.current()
    with lock_workdir(workdir, process.index) as folder:
        _check_unused(folder, resume)
        _check_data(config)
        process.agree({"versions": versions(), "config": config, "code": code_fingerprint(), "resume": resume})
        tasks, validation_tasks = (load_tasks(config, split) for split in ("tasks", "validation_tasks"))
        model = _start_model(config, tasks, cfg.seed, make_mesh(config.get("mesh"), all_processes=True))
        batches, validation_batches = _make_batches(config, cfg, model, tasks, validation_tasks)
        assert model.tokenizer is not None
        made_from = {
            # Parameters that are drawn depend on seed and shape, and on the device in their last bits.
            "model": model.fingerprint if config["model"] else None,
            "tokenizer": digest(model.tokenizer.get_vocab()),
            "data": batches.fingerprint,
            "validation_data": validation_batches.fingerprint if validation_batches else None,
        }
        process.agree({"made_from": {**made_from, "model": model.fingerprint}})
        # As the file gives it back, with lists for tuples.
        written = json.loads(json.dumps({**config, "made_from": made_from}))
        if resume:
            _check_unchanged(folder, written)
            check_steps(folder, cfg)
        process.wait()  # until all have read it
        if process.first:
            write_json(folder / "config.json", written)
        best = train(model, batches, validation_batches, cfg, folder, resume=resume)
        save_model(folder / "model", best)
        if process.first:
            _plot(folder)
        return folder / "model"


def load_tasks(config: Mapping[str, Any], split: str) -> list[Task]:
    """Makes the tasks of a field of the config, and reads their data, so that bad data is refused early."""
    return [LoadedTask(make_task(name, **fields)) for name, fields in config[split].items()]


def _check_unused(folder: Path, resume: bool) -> None:
    """Raises FileExistsError if the folder holds a run that this one would overwrite."""
    if (folder / "model" / "config.json").exists():
        raise FileExistsError(f"{folder} holds a finished run; allowed: another workdir")
    check_free(folder / "model")
    if (folder / "config.json").exists() and not resume:
        raise FileExistsError(f"{folder} holds a run; allowed: another workdir, or --resume")


def _check_data(config: Mapping[str, Any]) -> None:
    """Raises ValueError if the config takes no training data."""
    for name in ("limit", "validation_limit"):
        if config[name] is not None and config[name] < 1:
            raise ValueError(f"{name} is {config[name]}; allowed: at least 1")


def _check_unchanged(folder: Path, config: Mapping[str, Any]) -> None:
    """Compares the config, and what the run is made from, with those of the run to resume.

    Raises:
        ValueError: names each field that differs and may not, with both values, or config.json is damaged.
    """
    path = folder / "config.json"
    earlier = read_json(path)
    if earlier is None:
        if (folder / "checkpoints").exists():
            warnings.warn(
                f"{path} is missing; the run goes on without a comparison of config and data", stacklevel=2
            )
        return
    if not isinstance(earlier, dict):
        raise ValueError(f"{path} is damaged (no object); allowed: the file as it was written, or none")
    differing = {
        name: values for name, values in processes.differences(earlier, config).items() if name not in _MAY_CHANGE
    }
    if differing:
        raise ValueError(
            "config differs from that of the run to resume: "
            + "; ".join(f"{name} is {new!r}, was {old!r}" for name, (old, new) in differing.items())
        )


def _start_model(config: Mapping[str, Any], tasks: Sequence[Task], seed: int, mesh: Mesh | None) -> Model:
    """Loads the checkpoint that the config names, or makes a model with random parameters."""
    if config["model"]:
        return load_model(config["model"], progress=True, mesh=mesh)
    shape = dict(config["shape"])
    if config["tokenizer"] is not None:
        tokenizer = load_tokenizer(Path(config["tokenizer"]))
        if tokenizer is None:
            raise FileNotFoundError(f"tokenizer is {config['tokenizer']!r}, a folder without a tokenizer")
    else:
        tokenizer = _new_tokenizer(shape, tasks, config["limit"])
    return shard_model(new_model(shape, tokenizer, seed), mesh)


def _new_tokenizer(shape: Mapping[str, Any], tasks: Sequence[Task], limit: int | None) -> PreTrainedTokenizerBase:
    """Trains a tokenizer on the prompts and references of the tasks."""
    if "vocab_size" not in shape:
        raise ValueError("shape has no vocab_size; allowed: the number of pieces of the tokenizer to train")
    examples = [example for task in tasks for example in task.load()[:limit]]
    texts = [text for example in examples for text in (example.prompt, *example.references)]
    return train_tokenizer(texts, shape["vocab_size"])


def _make_batches(
    config: Mapping[str, Any],
    cfg: TrainConfig,
    model: Model,
    tasks: Sequence[Task],
    validation_tasks: Sequence[Task],
) -> tuple[Batches, Batches | None]:
    """Tokenizes the training data, and the validation data if there are any."""
    # Errors that are known before minutes of tokenizing.
    check_batch(model, cfg)
    cfg.depth_weights(model.config.num_decoder_layers)
    batches = batches_of(model, tasks, batch_size=cfg.batch_size, seed=cfg.seed, limit=config["limit"])
    if not validation_tasks:
        return batches, None
    return batches, batches_of(
        model, validation_tasks, batch_size=cfg.batch_size, limit=config["validation_limit"]
    )


def _plot(folder: Path) -> None:
    """Draws the accuracy of each depth at a few of the validations, if there are any."""
    validations = [line for line in read_metrics(folder / "metrics.jsonl") if line["split"] == "validation"]
    if validations:
        accuracy_per_depth(
            {
                f"step {line['step']}": line["accuracy"]
                for line in validations[:: max(1, len(validations) // _MIN_CURVES)]
            },
            folder / "accuracy_per_depth.svg",
        )
