"""Memory and time of a training step, for each loss over depths."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dvp_jax.report.table import Table
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.load import use_precision
from dvp_jax.t5.model import init_params
from dvp_jax.train.batches import Batch
from dvp_jax.train.trainer import TrainConfig, TrainState, train_step


def compare_losses(
    config: T5Config, losses: Sequence[str], *, batch: int, source_length: int, target_length: int, steps: int
) -> Table:
    """Compiles a training step with each loss, and measures its memory and its time.

    Args:
        config: the shape of the model; its weights are random.
        losses: losses of `TrainConfig`; ratios are against the first.
        batch: rows.
        source_length: tokens of each source.
        target_length: tokens of each target.
        steps: steps to time, after one to warm up; 0 to time none.

    Returns:
        A row for each loss: the peak memory that the step needs, its ratio, and the median time of a step.

    Raises:
        ValueError: an unknown loss.
    """
    cfgs = {loss: TrainConfig(steps=1000, batch_size=batch, loss=loss) for loss in losses}
    examples = random_batch(config.vocab_size, batch, source_length, target_length)
    state = jax.eval_shape(lambda key: new_state(config, cfgs[losses[0]], key), jax.random.key(0))
    programs = {}
    for loss, cfg in cfgs.items():
        with use_precision(None, cfg.dtype):  # as `train` does
            programs[loss] = train_step.lower(config, cfg, state, examples).compile()
    memory = {loss: peak_bytes(program) for loss, program in programs.items()}
    rows = []
    for loss, cfg in cfgs.items():
        seconds = "not measured"
        if steps:
            start = new_state(config, cfg, jax.random.key(0))
            seconds = f"{statistics.median(step_seconds(programs[loss], start, examples, steps)):.2f}"
        ratio = memory[loss] / memory[losses[0]]
        rows.append([loss, f"{memory[loss] / 1e6:.0f}", f"{ratio:.2f}x", seconds])
    return Table(["loss", "peak memory, MB", "ratio", "s/step"], rows)


def random_batch(vocab_size: int, batch: int, source_length: int, target_length: int) -> Batch:
    """A batch of random tokens without padding."""
    random = np.random.default_rng(0)
    ids = random.integers(2, vocab_size, (batch, source_length)).astype(np.int32)
    targets = random.integers(2, vocab_size, (batch, target_length)).astype(np.int32)
    return Batch(*map(jnp.asarray, (ids, ids > 0, targets, targets > 0)))


def new_state(config: T5Config, cfg: TrainConfig, key: jax.Array) -> TrainState:
    """The state before the first step, with random weights."""
    params = init_params(config, key)
    return TrainState(jnp.int32(0), params, cfg.make_optimizer().init(params))


def peak_bytes(program: jax.stages.Compiled) -> int:
    """The memory that a program needs by XLA's own account: arguments, results and temporaries."""
    memory = program.memory_analysis()
    assert memory is not None  # every backend of JAX gives it
    # Results that reuse the memory of arguments count once.
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes + results


def step_seconds(program: Any, state: TrainState, batch: Batch, steps: int) -> list[float]:
    """The seconds of each step, without the first one, which warms up."""
    seconds = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(program(state, batch))
        seconds.append(time.perf_counter() - start)
    return seconds[1:]
