"""The trainer: teaches every depth of a T5 to predict, so that tokens can leave early."""

from __future__ import annotations

import dataclasses
import json
import math
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

from dvp_jax.runs import processes
from dvp_jax.runs.files import write_whole
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.hugging_face import DTYPES
from dvp_jax.t5.load import Model
from dvp_jax.t5.model import T5, Params, unembedding
from dvp_jax.t5.sharding import place, round_up_rows, shardings
from dvp_jax.train.batches import Batch, Batches, shift_right
from dvp_jax.train.checkpoints import Checkpoints
from dvp_jax.train.losses import DepthSums, depth_weights, sums_by_depth
from dvp_jax.train.optimizer import OPTIMIZERS, SCHEDULES, make_optimizer, make_schedule


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        steps: optimiser steps.
        batch_size: examples a step.
        accumulation: parts that a batch is cut into, each with a forward and a backward pass of its own; the
            gradient is that of the whole batch.
        loss: which depths learn: see `losses.depth_weights`.
        loss_layers: the depths of loss "layers".
        loss_ratio: of loss "geometric".
        label_smoothing: in [0, 1).
        dropout_rate: None for the model's own.
        optimizer: "adafactor" or "adamw".
        learning_rate: the highest; for Adafactor relative to each parameter's scale.
        schedule: what follows the warm-up: "constant", "linear", "cosine", "inverse_sqrt".
        warmup_steps: steps of linear warm-up; a shorter run ends within it.
        weight_decay: of AdamW.
        clip_norm: bound of the gradient's norm, None for none.
        dtype: of the products; parameters and their updates are float32.
        seed: of the order of the examples and of dropout.
        log_every: steps between lines of training loss.
        checkpoint_every: steps between checkpoints, each with a validation.
        keep: latest checkpoints to keep, beside the best.
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
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; allowed: an integer of at least 1")
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
        if self.warmup_steps < 0:
            raise ValueError(f"warmup_steps is {self.warmup_steps}; allowed: an integer of at least 0")

    def make_optimizer(self) -> optax.GradientTransformation:
        """The optimiser with its learning rate."""
        schedule = make_schedule(self.schedule, self.learning_rate, self.warmup_steps, self.steps)
        return make_optimizer(self.optimizer, schedule, weight_decay=self.weight_decay, clip_norm=self.clip_norm)

    def depth_weights(self, num_layers: int) -> dict[int, float]:
        """The weight of each depth in the loss, on a decoder of `num_layers` layers."""
        return depth_weights(self.loss, num_layers, layers=self.loss_layers, ratio=self.loss_ratio)


def make_train_config(fields: Mapping[str, Any]) -> TrainConfig:
    """The config with the given fields.

    Raises:
        ValueError: a field that there is not, a missing one, or an impossible value.
    """
    allowed = [field.name for field in dataclasses.fields(TrainConfig)]
    if unknown := [name for name in fields if name not in allowed]:
        raise ValueError(f"train has no {', '.join(unknown)}; allowed: {', '.join(allowed)}")
    if "steps" not in fields:
        raise ValueError("train.steps is not set; allowed: an integer of at least 1")
    # A config file holds lists; a static argument of `jit` must be hashable.
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    return TrainConfig(**values)


@struct.dataclass
class TrainState:
    """All that a run needs to go on."""

    step: Int[Array, ""]  # steps taken
    params: Params
    optimizer: optax.OptState


@struct.dataclass
class StepMetrics:
    """What a step tells."""

    loss: Float[Array, ""]  # a token, weighted over depths
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
    """Cross-entropy and correct tokens of the given depths, from one teacher-forced pass.

    Args:
        config: the model's shape.
        params: of the model, in the dtype that products are taken in.
        batch: sources and targets.
        depths: from 1 to L.
        label_smoothing: of the cross-entropy.
        dropout_key: None for no dropout.
    """

    def readouts(model: T5) -> Array:
        hidden = model.depths(batch.input_ids, batch.mask, shift_right(config, batch.targets))
        return model.readout(jnp.stack([hidden[depth - 1] for depth in depths]))

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
    """One optimiser step.

    Args:
        config: the model's shape, with the rate of dropout.
        cfg: how to train.
        state: before the step; given up.
        batch: of `cfg.batch_size` rows.
    """
    weights = cfg.depth_weights(config.num_decoder_layers)
    key = jax.random.fold_in(jax.random.key(cfg.seed, impl="rbg"), state.step)
    tokens = jnp.maximum(jnp.sum(batch.target_mask), 1).astype(jnp.float32)

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
        # Over the tokens of the whole batch, so that the parts' gradients add up to the batch's.
        return jnp.dot(sums.loss, jnp.array(list(weights.values()))) / tokens

    gradient_of = jax.value_and_grad(loss_of)
    if cfg.accumulation == 1:
        loss, gradient = gradient_of(state.params, batch, jnp.int32(0))
    else:

        def add(total: Any, indexed: tuple[Array, Batch]) -> tuple[Any, None]:
            index, part = indexed
            return jax.tree.map(jnp.add, total, gradient_of(state.params, part, index)), None

        # Every part from all over the batch, whose rows may be spread over devices in order.
        parts = jax.tree.map(lambda x: x.reshape(-1, cfg.accumulation, *x.shape[1:]).swapaxes(0, 1), batch)
        zero = (jnp.float32(0.0), jax.tree.map(jnp.zeros_like, state.params))
        (loss, gradient), _ = jax.lax.scan(add, zero, (jnp.arange(cfg.accumulation), parts))

    updates, optimizer = cfg.make_optimizer().update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, optimizer), StepMetrics(loss, optax.global_norm(gradient))


@partial(jax.jit, static_argnums=0)
def _validation_sums(config: T5Config, params: Params, batch: Batch) -> DepthSums:
    return depth_sums(config, params, batch, tuple(range(1, config.num_decoder_layers + 1)))


def validate(config: T5Config, params: Params, batches: Iterable[Batch]) -> dict[str, list[float]]:
    """Loss and accuracy of every depth, a token, without dropout and label smoothing.

    Args:
        config: the model's shape.
        params: of the model.
        batches: all of them are run.

    Returns:
        "loss" and "accuracy" (teacher-forced, in [0, 1]): lists over the depths 1..L.
    """
    sums = [_validation_sums(config, params, batch) for batch in batches]
    loss, correct, tokens = (
        np.sum([np.asarray(getattr(s, name)) for s in sums], axis=0) for name in ("loss", "correct", "tokens")
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
    """Trains, with checkpoints, validation and a log, and returns the best model.

    A run that was interrupted at any moment and is resumed ends with the parameters of one that was not. A model
    on a mesh is trained there, its optimiser's state beside its parameters. Of several processes, which share a
    mesh of all their devices, process 0 writes the log, all of them the checkpoints.

    Args:
        model: where to start.
        train_batches: from `batches_of`.
        validation_batches: None for no validation: the last model is then the best.
        cfg: how to train.
        workdir: holds checkpoints/ and metrics.jsonl, a line for each log and each validation.
        resume: go on from the latest checkpoint in the workdir; without any, from the start.

    Raises:
        FileExistsError: the workdir holds checkpoints and resume is False.
        ValueError: the checkpoint's arrays are not those of this run, or the loss is no longer finite; the
            checkpoints before stay. Or the model's mesh does not fit cfg.
        OSError: a checkpoint or the log could not be written; the checkpoints before stay.
    """
    weights = cfg.depth_weights(model.config.num_decoder_layers)
    check_batch(model, cfg)
    config = model.config
    if cfg.dropout_rate is not None:
        config = dataclasses.replace(config, dropout_rate=cfg.dropout_rate)
    with Checkpoints(workdir / "checkpoints", cfg.keep) as checkpoints:
        taken = checkpoints.steps()
        if taken and not resume:
            raise FileExistsError(
                f"{workdir} holds a run up to step {taken[-1]}; allowed: another workdir, or resume"
            )
        # A meta classifier knows the old parameters only.
        params = {name: value for name, value in model.params.items() if name != "meta"}
        # Copies, since each step gives up the parameters before it.
        params = jax.tree.map(lambda x: jnp.array(x, jnp.float32), params)
        init = cfg.make_optimizer().init
        if model.mesh is not None:
            init = jax.jit(init, out_shardings=shardings(model.mesh, jax.eval_shape(init, params)))
        state = TrainState(place(model.mesh, jnp.int32(0)), params, init(params))
        if taken:
            state = checkpoints.restore(taken[-1], state)
        log = MetricsLog(workdir / "metrics.jsonl", int(state.step))

        unchecked: list[tuple[int, StepMetrics]] = []
        start = int(state.step)
        bar = tqdm(range(start + 1, cfg.steps + 1), initial=start, total=cfg.steps, desc="training", unit="step")
        for step in bar:
            state, metrics = train_step(config, cfg, state, train_batches.at(step - 1))
            unchecked.append((step, metrics))
            checkpoint = step % cfg.checkpoint_every == 0 or step == cfg.steps
            if checkpoint or step % cfg.log_every == 0:
                mean = _mean_loss(unchecked)
                log.write({"step": step, "split": "train", "loss": mean})
                bar.set_postfix(loss=f"{mean:.3f}", refresh=False)
                unchecked = []
            if checkpoint:
                loss = None
                if validation_batches is not None:
                    by_depth = validate(config, state.params, validation_batches.once())
                    loss = sum(weight * by_depth["loss"][depth - 1] for depth, weight in weights.items())
                    if not math.isfinite(loss):
                        raise ValueError(f"step {step}: the validation loss is {loss}; {_STOPPED}")
                    log.write({"step": step, "split": "validation", **by_depth})
                checkpoints.save(step, state, loss)
        checkpoints.wait()
        best = checkpoints.best()
        assert best is not None
        if best != int(state.step):
            state = checkpoints.restore(best, state)
    return dataclasses.replace(model, params=state.params)


def check_batch(model: Model, cfg: TrainConfig) -> None:
    """Refuses to train on the model's mesh what would not fit, or not come out as on one device.

    Raises:
        ValueError: batch_size or the optimiser; or several processes without a mesh.
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
    """Mean training loss of some steps.

    Raises:
        ValueError: one of them is not finite; names the first such step.
    """
    for step, one in metrics:
        if not (math.isfinite(one.loss) and math.isfinite(one.gradient_norm)):
            raise ValueError(
                f"step {step}: the loss is {float(one.loss)} and its gradient's norm "
                f"{float(one.gradient_norm)}; {_STOPPED}"
            )
    return float(np.mean([one.loss for _, one in metrics]))


class MetricsLog:
    """metrics.jsonl: one JSON object a line.

    Args:
        path: lines beyond `step` are dropped: an interrupted run will write them again. Of several processes only
            the first writes.
        step: steps taken.
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
            OSError: it cannot be written; names the file.
        """
        if not self._writes:
            return
        try:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OSError(f"{self._path} cannot be written: {error.strerror}") from None


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a last one that was cut short is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            lines.append(json.loads(line))
        except ValueError:
            break
    return lines
