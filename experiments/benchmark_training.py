"""Memory and time of a training step, for each loss over depths.

    python -m experiments.benchmark_training

The shape of T5-base, batch 8, random weights. Memory is what the compiled step needs by XLA's own account:
arguments, results and temporaries. With --measure_steps above 0, steps are also run and timed. Prints a table.
"""

from __future__ import annotations

from absl import flags

from dvp_jax.bench.training import compare_losses
from dvp_jax.runs import launch
from dvp_jax.t5.config import T5Config

_LAYERS = flags.DEFINE_integer("layers", 12, "Layers of the encoder, and of the decoder.")
_D_MODEL = flags.DEFINE_integer("d_model", 768, "Width of the model; the feed-forward block is 4 times as wide.")
_BATCH = flags.DEFINE_integer("batch", 8, "Rows.")
_SOURCE = flags.DEFINE_integer("source_length", 512, "Tokens of each source.")
_TARGET = flags.DEFINE_integer("target_length", 128, "Tokens of each target.")
_LOSSES = flags.DEFINE_list("losses", ["final", "weighted"], "Losses to compare; ratios are against the first.")
_MEASURE = flags.DEFINE_integer("measure_steps", 0, "Steps to time, after one to warm up; 0 for memory alone.")


def main() -> None:
    """Compares the losses."""
    config = T5Config(
        d_model=_D_MODEL.value,
        d_ff=4 * _D_MODEL.value,
        num_heads=_D_MODEL.value // 64,
        num_layers=_LAYERS.value,
        num_decoder_layers=_LAYERS.value,
    )
    table = compare_losses(
        config,
        _LOSSES.value,
        batch=_BATCH.value,
        source_length=_SOURCE.value,
        target_length=_TARGET.value,
        steps=_MEASURE.value,
    )
    print(table.markdown())


if __name__ == "__main__":
    launch.run(main)
