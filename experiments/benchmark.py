"""Milliseconds per token against the bound that memory bandwidth sets, with forced exits.

    python -m experiments.benchmark --preset=readme --results=runs/benchmark
    python -m experiments.benchmark --preset=mt5 --results=runs/benchmark_mt5

Uses random weights of a published shape, or a checkpoint. Thresholds force each token to exit at the depth asked
for, so speed does not depend on a model's quality; with `lossless`, the random layers after p add nothing, so that
every draft is right. Medians are reported. On a CPU all cases run in turn, A B A B.
On a GPU or TPU each runs alone, after all were compiled. `efficiency` is the time that reading the needed bytes
takes at the device's measured bandwidth, divided by the measured time. `compile s` is short for programs that an
earlier start has compiled; --nocompile_cache compiles them again. With --baselines, other decoders of the same
weights run too, on the same device.

Each benchmark of a preset runs in a process of its own, which is killed when its time is over. The others go on.
--preset=gpu takes at most 8 minutes, on one GPU with 80 GB. Each row is printed as soon as it is measured; with
--results, it is written to results.json at once, and plots follow at the end.
"""

from __future__ import annotations

import contextlib
import os

from absl import flags

from dvp_jax.bench.baselines import LIBRARIES
from dvp_jax.bench.cases import METHODS, PRESETS, make_benchmark
from dvp_jax.bench.preset import run_preset
from dvp_jax.bench.results import Results
from dvp_jax.bench.timing import run_benchmark
from dvp_jax.runs import launch
from dvp_jax.runs.files import lock_workdir
from dvp_jax.t5.config import SHAPES

_PRESET = flags.DEFINE_enum(
    "preset", None, list(PRESETS), "Benchmarks to run, instead of the one the flags describe."
)
_SHAPE = flags.DEFINE_string("shape", "t5-base", f"The model: {', '.join(SHAPES)}, or a checkpoint.")
_METHODS = flags.DEFINE_multi_enum(
    "methods", list(METHODS), [*METHODS, "lossless", "shallow_deep"], "Methods to time."
)
_DEPTHS = flags.DEFINE_list(
    "depths", None, "Exit depths; 0 for a spread. Unset: all, half and a quarter of the layers, but at least 2."
)
_BATCH = flags.DEFINE_integer("batch", 1, "Rows decoded together.", lower_bound=1)
_VOCAB = flags.DEFINE_integer("vocab_size", None, "Vocabulary, instead of the shape's own.", lower_bound=2)
_PRUNE_SIZE = flags.DEFINE_integer("prune_size", 64, "K, the tokens that `dvp` keeps.", lower_bound=1)
_SOURCE = flags.DEFINE_integer("source_length", 256, "Tokens of each source.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens that each row generates.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Dtype of the weights.")
_EXIT_DEPTHS = flags.DEFINE_list(
    "exit_depths", "0", "Values of exit_depths to compare: 0 for every depth, n for every n-th."
)
_BRANCHING = flags.DEFINE_list("branch_every", "0", "Values of branch_every to compare; 0 for the backend's own.")
_UNEMBEDDINGS = flags.DEFINE_list(
    "unembeddings", "auto", "Forms of the unembedding to compare: auto, float, int8."
)
_WAITING = flags.DEFINE_list(
    "max_waiting", None, "Values of max_waiting to compare, for lossless and shallow_deep. Unset: the default."
)
_BASELINES = flags.DEFINE_enum(
    "baselines", None, list(LIBRARIES), "Other decoders to time too; need the extra bench."
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds over all cases.", lower_bound=1)
_RESULTS = flags.DEFINE_string("results", None, "A folder for results.json and the plots.")


def main() -> None:
    """Runs the preset, or the benchmark that the flags describe."""
    with contextlib.nullcontext() if _RESULTS.value is None else lock_workdir(_RESULTS.value):
        _run()


def _run() -> None:
    # JAX would take most of a GPU's memory, and PyTorch's decoders need some of it.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    if _PRESET.value:
        run_preset(PRESETS[_PRESET.value], _ROUNDS.value, _RESULTS.value)
        return
    benchmark = make_benchmark(
        _SHAPE.value,
        _METHODS.value,
        launch.integers(_DEPTHS) if _DEPTHS.value else None,
        prune_size=_PRUNE_SIZE.value,
        exit_depths=[number or None for number in launch.integers(_EXIT_DEPTHS)],
        branch_every=[number or None for number in launch.integers(_BRANCHING)],
        unembeddings=_UNEMBEDDINGS.value,
        max_waiting=launch.integers(_WAITING) if _WAITING.value else [None],
        vocab_size=_VOCAB.value,
        batch=_BATCH.value,
        source_length=_SOURCE.value,
        new_tokens=_TOKENS.value,
        dtype=_DTYPE.value,
        baselines=_BASELINES.value,
    )
    results = Results(_RESULTS.value)
    results.start(benchmark)
    for measurement in run_benchmark(benchmark, _ROUNDS.value):
        results.add(measurement)
    results.finish()
    results.plot()


if __name__ == "__main__":
    launch.run(main, interrupted="rows that were measured are in results.json, where --results is given")
