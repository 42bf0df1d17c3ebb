"""Memory and time of a training step, for each loss over depths.

    python -m experiments.benchmark_training

T5-base shapes, batch 8, random weights. Memory is what the compiled step needs by XLA's own account: arguments,
results and temporaries. With --measure_steps above 0 steps are run and timed too. Prints a table.
"""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dvp_jax.runs import launch
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.model import init_params
from dvp_jax.train.batches import Batch
from dvp_jax.train.trainer import TrainConfig, TrainState, train_step

_LAYERS = flags.DEFINE_integer("layers", 12, "Layers of encoder and decoder.")
_D_MODEL = flags.DEFINE_integer("d_model", 768, "Width; 4 times as much in the feed-forward block.")
_BATCH = flags.DEFINE_integer("batch", 8, "Rows.")
_SOURCE = flags.DEFINE_integer("source_length", 512, "Source tokens.")
_TARGET = flags.DEFINE_integer("target_length", 128, "Target tokens.")
_LOSSES = flags.DEFINE_list("losses", ["final", "weighted"], "Losses to compare; the first is the base of ratios.")
_MEASURE = flags.DEFINE_integer("measure_steps", 0, "Steps to run and time, after one to warm up.")


def main() -> None:
    """Compares the losses."""
    config = T5Config(
        d_model=_D_MODEL.value,
        d_ff=4 * _D_MODEL.value,
        num_heads=_D_MODEL.value // 64,
        num_layers=_LAYERS.value,
        num_decoder_layers=_LAYERS.value,
    )
    cfgs = {loss: TrainConfig(steps=1000, batch_size=_BATCH.value, loss=loss) for loss in _LOSSES.value}
    random = np.random.default_rng(0)
    source, target = ((_BATCH.value, length) for length in (_SOURCE.value, _TARGET.value))
    ids, targets = (random.integers(2, config.vocab_size, shape).astype(np.int32) for shape in (source, target))
    batch = Batch(*map(jnp.asarray, (ids, ids > 0, targets, targets > 0)))
    state = jax.eval_shape(lambda key: _state(config, next(iter(cfgs.values())), key), jax.random.key(0))

    memory = {}
    steps = {}
    for loss, cfg in cfgs.items():
        steps[loss] = train_step.lower(config, cfg, state, batch).compile()
        account = steps[loss].memory_analysis()
        assert account is not None  # on every backend that JAX names
        memory[loss] = (
            account.temp_size_in_bytes
            + account.argument_size_in_bytes
            + (account.output_size_in_bytes - account.alias_size_in_bytes)
        )
    times = {
        loss: _times(steps[loss], _state(config, cfg, jax.random.key(0)), batch) for loss, cfg in cfgs.items()
    }

    base = next(iter(memory))
    print("| loss | peak memory, MB | ratio | s/step |\n| --- | ---: | ---: | ---: |")
    for loss, size in memory.items():
        seconds = f"{statistics.median(times[loss]):.2f}" if times[loss] else "not measured"
        print(f"| {loss} | {size / 1e6:.0f} | {size / memory[base]:.2f}x | {seconds} |")


def _state(config: T5Config, cfg: TrainConfig, key: jax.Array) -> TrainState:
    params = init_params(config, key)
    return TrainState(jnp.int32(0), params, cfg.make_optimizer().init(params))


def _times(step, state: TrainState, batch: Batch) -> list[float]:
    """Seconds of each step after the first."""
    seconds = []
    for _ in range(_MEASURE.value + 1 if _MEASURE.value else 0):
        clock = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch))
        seconds.append(time.perf_counter() - clock)
    return seconds[1:]


if __name__ == "__main__":
    launch.run(main)
