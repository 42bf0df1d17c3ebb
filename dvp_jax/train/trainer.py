"""Trains a T5 so that every depth can predict the next token, which early exit needs."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Float, Int
from tqdm import tqdm

from dvp_jax.exits.policy import check_integer
from dvp_jax.runs import processes
from dvp_jax.runs.files import write_whole, written
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.hugging_face import DTYPES
from dvp_jax.t5.load import Model, use_precision
from dvp_jax.t5.model import T5, Params, unembedding
from dvp_jax.t5.sharding import place, round_up_rows, shardings
from dvp_jax.train.batches import Batch, Batches, shift_right
from dvp_jax.train.checkpoints import Checkpoints
from dvp_jax.train.losses import DepthSums, depth_weights, sums_by_depth
from dvp_jax.train.optimizer import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The settings of a training run.

    Attributes:
        steps: the number of optimiser steps.
        batch_size: the number of examples of a step.
        accumulation: the number of parts that a batch is cut into. Each part has a forward and a backward pass of
            its own, and their gradients add up to the gradient of the whole batch.
        loss: which depths the loss weighs, and how: see `losses.depth_weights`.
        loss_layers: the depths of loss "layers".
        loss_ratio: the ratio of loss "geometric".
        label_smoothing: the smoothing of the cross-entropy, in [0, 1).
        dropout_rate: the rate of dropout, in [0, 1); None for the model's own.
        optimizer: "adafactor" or "adamw".
        learning_rate: the highest learning rate. For Adafactor it is relative to each parameter's scale.
        schedule: the learning rate after the warm-up: "constant", "linear", "cosine" or "inverse_sqrt".
        warmup_steps: the number of steps of linear warm-up. A shorter run ends during the warm-up.
        weight_decay: the weight decay of AdamW.
        clip_norm: the largest norm of the gradient; None for no bound.
        dtype: the dtype of matrix products, forward and backward. Parameters and their updates are float32.
        seed: decides the order of the examples and the dropout.
        log_every: the number of steps between two lines of training loss.
        checkpoint_every: the number of steps between two checkpoints. Each is validated.
        keep: how many of the latest checkpoints are kept, besides the best one.
    """

    steps: int
    batch_size: int = 32
    accumulation: int = 1
    loss: str = "weighted"
    loss_layers: tuple[int, ...] = ()
    loss_ratio: float = 0.8
    label_smoothing: float = 0.0
    dropout_rate: float | None = None
    optimizer: str = "adafactor"
    learning_rate: float = 1e-3
    schedule: str = "constant"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0
    dtype: str = "float32"
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        for name, allowed in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES), ("dtype", DTYPES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        for name in ("steps", "batch_size", "accumulation", "log_every", "checkpoint_every", "keep"):
            check_integer(name, getattr(self, name), 1, None)
        for name in ("warmup_steps", "seed"):
            check_integer(name, getattr(self, name), 0, None)
        if self.seed >= 2**32:
            raise ValueError(f"seed is {self.seed}; allowed: an integer below 2 ** 32")
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation is {self.accumulation}; allowed: a divisor of batch_size, {self.batch_size}"
            )
        for name, below in (("label_smoothing", 1.0), ("dropout_rate", 1.0), ("weight_decay", math.inf)):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < below:
                raise ValueError(f"{name} is {value!r}; allowed: at least 0, below {below}")
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}; allowed: a finite number above 0")

    def make_optimizer(self) -> optax.GradientTransformation:
        """Returns the optimiser with its schedule."""
        schedule = make_schedule(self.schedule, self.learning_rate, self.warmup_steps, self.steps)
        return make_optimizer(self.optimizer, schedule, weight_decay=self.weight_decay, clip_norm=self.clip_norm)

    def depth_weights(self, num_layers: int) -> dict[int, float]:
        """Returns the weight of each depth in the loss, for a decoder of `num_layers` layers."""
        return depth_weights(self.loss, num_layers, layers=self.loss_layers, ratio=self.loss_ratio)


def make_train_config(fields: Mapping[str, Any]) -> TrainConfig:
    """Makes a `TrainConfig` from the fields of a config file.

    Raises:
        ValueError: an unknown field, no "steps", or an impossible value.
    """
    allowed = [field.name for field in dataclasses.fields(TrainConfig)]
    if unknown := [name for name in fields if name not in allowed]:
        raise ValueError(f"train has no {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    if "steps" not in fields:
        raise ValueError("train.steps is not set; allowed: an integer of at least 1")
    # A config file holds lists, but a static argument of `jit` must be hashable.
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return TrainConfig(**values)


@struct.dataclass
class TrainState:
    """All that a run needs to continue."""

    step: Int[Array, ""]  # number of steps taken
    params: Params
    optimizer: optax.OptState


@struct.dataclass
class StepMetrics:
    """What is measured in a step."""

    loss: Float[Array, ""]  # mean over tokens, weighted over depths
    gradient_norm: Float[Array, ""]  # before clipping


def depth_sums(
    config: T5Config,
    params: Params,
    batch: Batch,
    depths: tuple[int, ...],
    *,
    label_smoothing: float = 0.0,
    dropout_key: Array | None = None,
) -> DepthSums:
    """Runs the model once with teacher forcing, and sums cross-entropy and correct tokens at the given depths.

    Args:
        config: the model's shape, with the rate of dropout.
        params: the model's parameters, in the dtype of the matrix products.
        batch: sources and targets.
        depths: the depths to read, from 1 to L.
        label_smoothing: the smoothing of the cross-entropy, in [0, 1).
        dropout_key: a random key; None for no dropout.
    """

    def readouts(model: T5) -> Array:
        # One [batch, target, d_model] for each of the L depths.
        hidden = model.depths(batch.input_ids, batch.mask, shift_right(config, batch.targets))
        return model.readout(
            jnp.stack([hidden[depth - 1] for depth in depths])
        )  # [depths, batch, target, d_model]

    rngs = {} if dropout_key is None else {"dropout": dropout_key}
    return sums_by_depth(
        nn.apply(readouts, T5(config))({"params": params}, rngs=rngs),
        unembedding(config, params),
        batch.targets,
        batch.target_mask,
        label_smoothing,
    )


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def train_step(
    config: T5Config, cfg: TrainConfig, state: TrainState, batch: Batch
) -> tuple[TrainState, StepMetrics]:
    """Takes one optimiser step.

    Args:
        config: the model's shape, with the rate of dropout.
        cfg: the settings of the run.
        state: the state before the step. Its buffers are donated, so the caller must not use it again.
        batch: `cfg.batch_size` rows.

    Returns:
        The state after the step, and what was measured in it.
    """
    loss, gradient = _loss_and_gradient(config, cfg, state, batch)
    updates, optimizer = cfg.make_optimizer().update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, optimizer), StepMetrics(loss, optax.global_norm(gradient))


def _loss_and_gradient(
    config: T5Config, cfg: TrainConfig, state: TrainState, batch: Batch
) -> tuple[Float[Array, ""], Params]:
    """Returns the mean loss of the batch and its gradient."""
    weights = cfg.depth_weights(config.num_decoder_layers)
    key = jax.random.fold_in(jax.random.key(cfg.seed, impl="rbg"), state.step)
    num_tokens = jnp.maximum(jnp.sum(batch.target_mask), 1).astype(jnp.float32)

    def loss_of(params: Params, part: Batch, index: Array) -> Array:
        params = jax.tree.map(lambda x: x.astype(cfg.dtype), params)
        sums = depth_sums(
            config,
            params,
            part,
            tuple(weights),
            label_smoothing=cfg.label_smoothing,
            dropout_key=jax.random.fold_in(key, index) if config.dropout_rate else None,
        )
        # Divided by the tokens of the whole batch, so that the gradients of its parts add up to the batch's.
        return jnp.dot(sums.loss, jnp.array(list(weights.values()))) / num_tokens

    part_loss_and_gradient = jax.value_and_grad(loss_of)
    if cfg.accumulation == 1:
        return part_loss_and_gradient(state.params, batch, jnp.int32(0))

    def add_part(total: Any, indexed_part: tuple[Array, Batch]) -> tuple[Any, None]:
        index, part = indexed_part
        return jax.tree.map(jnp.add, total, part_loss_and_gradient(state.params, part, index)), None

    # [batch, ...] to [accumulation, batch / accumulation, ...]. Each part takes every accumulation-th row: rows
    # may be spread over devices in order, and so each device has rows of every part.
    parts = jax.tree.map(lambda x: x.reshape(-1, cfg.accumulation, *x.shape[1:]).swapaxes(0, 1), batch)
    zero = (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, state.params))
    total, _ = jax.lax.scan(add_part, zero, (jnp.arange(cfg.accumulation), parts))
    return total


@partial(jax.jit, static_argnums=0)
def _validation_sums(config: T5Config, params: Params, batch: Batch) -> DepthSums:
    return depth_sums(config, params, batch, tuple(range(1, config.num_decoder_layers + 1)))


def validate(config: T5Config, params: Params, batches: Iterable[Batch]) -> dict[str, list[float]]:
    """Measures loss and accuracy of every depth, without dropout and label smoothing.

    Args:
        config: the model's shape.
        params: the model's parameters.
        batches: the validation data, each example once.

    Returns:
        "loss" and "accuracy": means over the tokens with teacher forcing, as lists over the depths 1..L. Accuracy
        is in [0, 1].
    """
    sums = [_validation_sums(config, params, batch) for batch in batches]
    loss, correct, tokens = (
        np.sum([np.asarray(getattr(each, name)) for each in sums], axis=0)
        for name in ("loss", "correct", "tokens")
    )
    return {"loss": (loss / tokens).tolist(), "accuracy": (correct / tokens).tolist()}


def train(
    model: Model,
    train_batches: Batches,
    validation_batches: Batches | None,
    cfg: TrainConfig,
    workdir: Path,
    *,
    resume: bool = False,
) -> Model:
    """Trains a model with checkpoints, validation and a log, and returns the best one.

    A run that is interrupted and resumed ends with the same parameters as one that is not. A model on a mesh is
    trained there, and the optimiser's state is divided as the parameters are. Several processes share a mesh of
    all their devices: process 0 writes the log, and all write the checkpoints.

    Args:
        model: the model to start from.
        train_batches: the training data, from `batches_of`.
        validation_batches: the validation data. Without them the last model is the best.
        cfg: the settings of the run.
        workdir: gets checkpoints/ and metrics.jsonl, which has a line for each log and each validation.
        resume: continue from the latest whole checkpoint in the workdir, or start if there is none.

    Raises:
        FileExistsError: the workdir holds checkpoints and resume is False.
        ValueError: the checkpoint's arrays are not those of this run, it has taken more steps than cfg says, no
            checkpoint is whole, the loss is not finite, or the model's mesh does not fit cfg. Earlier checkpoints
            are kept.
        OSError: a checkpoint or the log could not be written. Earlier checkpoints are kept.
    """
    cfg.depth_weights(model.config.num_decoder_layers)  # an error before anything is written
    check_batch(model, cfg)
    config = model.config
    if cfg.dropout_rate is not None:
        config = dataclasses.replace(config, dropout_rate=cfg.dropout_rate)
    with Checkpoints(workdir / "checkpoints", cfg.keep) as checkpoints:
        saved_steps = checkpoints.steps()
        if saved_steps and not resume:
            raise FileExistsError(
                f"{workdir} holds a run up to step {saved_steps[-1]}; allowed: another workdir, or resume"
            )
        check_steps(workdir, cfg)
        state = _initial_state(model, cfg)
        if saved_steps:
            state = checkpoints.restore_latest(state)
            if state.step != (name := checkpoints.steps()[-1]):
                folder = workdir / "checkpoints" / str(name)
                raise ValueError(f"{folder} is of step {state.step}; allowed: a folder of this name")
        first_step = int(state.step) + 1
        log = MetricsLog(workdir / "metrics.jsonl", int(state.step))

        unchecked: list[tuple[int, StepMetrics]] = []
        bar = tqdm(
            range(first_step, cfg.steps + 1),
            initial=first_step - 1,
            total=cfg.steps,
            desc="training",
            unit="step",
        )
        for step in bar:
            batch = train_batches.at(step - 1)
            with use_precision(model.precision, cfg.dtype):
                state, metrics = train_step(config, cfg, state, batch)
            unchecked.append((step, metrics))
            saves = step % cfg.checkpoint_every == 0 or step == cfg.steps
            if saves or step % cfg.log_every == 0:
                loss = _mean_loss(unchecked)
                log.write({"step": step, "split": "train", "loss": loss})
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                unchecked = []
            if saves:
                validation_loss = None
                if validation_batches is not None:
                    with use_precision(model.precision, jnp.float32):  # the parameters' dtype, whatever cfg.dtype
                        validation_loss = _validate(config, cfg, state.params, validation_batches, log, step)
                checkpoints.save(step, state, validation_loss)
        checkpoints.wait()
        best_step = checkpoints.best()
        assert best_step is not None
        if best_step != int(state.step):
            state = checkpoints.restore(best_step, state)
    return dataclasses.replace(model, params=state.params)


def check_steps(workdir: Path, cfg: TrainConfig) -> None:
    """Raises ValueError if the run in a workdir has taken more steps than it shall take."""
    names = [path.name for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]
    if (taken := max(map(int, names), default=0)) > cfg.steps:
        raise ValueError(f"steps is {cfg.steps}; allowed: at least {taken}, which the run in {workdir} has taken")


def _initial_state(model: Model, cfg: TrainConfig) -> TrainState:
    """Returns the state before the first step, on the model's mesh if it has one."""
    # A meta classifier fits the parameters before training only.
    params = {name: value for name, value in model.params.items() if name != "meta"}
    # Copies, since the first step donates them.
    params = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
    init = cfg.make_optimizer().init
    if model.mesh is not None:
        init = jax.jit(init, out_shardings=shardings(model.mesh, jax.eval_shape(init, params)))
    return TrainState(place(model.mesh, jnp.int32(0)), params, init(params))


def _validate(
    config: T5Config, cfg: TrainConfig, params: Params, batches: Batches, log: MetricsLog, step: int
) -> float:
    """Validates and logs; returns the loss, weighted over depths.

    Raises:
        ValueError: the loss is not finite.
    """
    by_depth = validate(config, params, batches.once())
    weights = cfg.depth_weights(config.num_decoder_layers)
    loss = sum(weight * by_depth["loss"][depth - 1] for depth, weight in weights.items())
    if not math.isfinite(loss):
        raise ValueError(f"step {step}: the validation loss is {loss}; {_STOPPED}")
    log.write({"step": step, "split": "validation", **by_depth})
    return loss


def check_batch(model: Model, cfg: TrainConfig) -> None:
    """Checks that training on the model's mesh is possible and gives the same model as on one device.

    Raises:
        ValueError: batch_size cannot be divided, the optimiser would not give the same, or several processes have
            no mesh.
    """
    if model.mesh is None and (count := processes.current().count) > 1:
        raise ValueError(f"model.mesh is None; allowed with {count} processes: a mesh of all their devices")
    devices = round_up_rows(model.mesh, 1)
    if cfg.batch_size % (cfg.accumulation * devices):
        raise ValueError(
            f"batch_size is {cfg.batch_size}; allowed: multiples of {cfg.accumulation * devices}, accumulation "
            f"{cfg.accumulation} times {devices} devices along data"
        )
    if cfg.optimizer == "adafactor" and model.config.vocab_padding:
        raise ValueError(
            f"optimizer is 'adafactor', whose step for an embedding depends on all its rows, and this mesh adds "
            f"{model.config.vocab_padding} to the {model.config.vocab_size}; allowed: adamw, or a model axis that "
            "divides them"
        )


_STOPPED = "stopped, and the checkpoints before it kept. A lower learning_rate or clip_norm may help"


def _mean_loss(metrics: list[tuple[int, StepMetrics]]) -> float:
    """Returns the mean training loss of the given steps.

    Raises:
        ValueError: a loss is not finite. The message names the first such step.
    """
    for step, measured in metrics:
        if not (math.isfinite(measured.loss) and math.isfinite(measured.gradient_norm)):
            raise ValueError(
                f"step {step}: the loss is {float(measured.loss)} and its gradient's norm "
                f"{float(measured.gradient_norm)}; {_STOPPED}"
            )
    return float(np.mean([measured.loss for _, measured in metrics]))


class MetricsLog:
    """Writes metrics.jsonl, one JSON object a line. Only process 0 of several writes it.

    Args:
        path: the file. Lines of later steps than `step` are removed, since the resumed run writes them again.
        step: the number of steps taken.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path, self._writes = path, processes.current().first
        if not self._writes:
            return
        lines = [line for line in read_metrics(path) if line["step"] <= step] if path.exists() else []
        write_whole(path, (json.dumps(line) + "\n" for line in lines))

    def write(self, line: Mapping[str, Any]) -> None:
        """Appends a line.

        Raises:
            OSError: the file cannot be written. The message names it.
        """
        if not self._writes:
            return
        with written(self._path), open(self._path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Returns the lines of a metrics.jsonl, without a last one that is torn.

    Other lines that are damaged are left out too, with a warning.

    Raises:
        OSError: the file does not exist or cannot be read.
    """
    *lines, _torn = path.read_bytes().split(b"\n")
    metrics = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
            is_train = value["split"] == "train"
            measured = [value["loss"]] if is_train else [value["loss"], value["accuracy"]]
            has_fields = isinstance(value["step"], int) and all(
                isinstance(each, float if is_train else list) for each in measured
            )
        except (ValueError, KeyError, TypeError):
            has_fields = False
        if has_fields:
            metrics.append(value)
        else:
            warnings.warn(f"{path}, line {number}: damaged and left out", stacklevel=2)
    return metrics
