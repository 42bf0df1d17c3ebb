"""Milliseconds per token against the bound that memory bandwidth sets, with forced exits, in one process.

    python -m experiments.benchmark --preset=readme --results=runs/benchmark

Uses random weights of a published shape, or a checkpoint. Thresholds force each token to exit at the depth asked
for, so speed does not depend on a model's quality. Cases run in turn, A B A B, and medians are reported.
`efficiency` is the time that reading the needed bytes takes at the machine's measured bandwidth, divided by the
measured time. With --baselines, other decoders of the same weights run too. Prints tables; with --results, writes
results.json and plots.
"""

from __future__ import annotations

from absl import flags

from dvp_jax.bench.baselines import LIBRARIES
from dvp_jax.bench.cases import METHODS, PRESETS, make_benchmark
from dvp_jax.bench.timing import run_benchmarks
from dvp_jax.runs import launch
from dvp_jax.t5.config import SHAPES

_PRESET = flags.DEFINE_enum(
    "preset", None, list(PRESETS), "Benchmarks to run, instead of the one the flags describe."
)
_SHAPE = flags.DEFINE_string("shape", "t5-base", f"The model: {', '.join(SHAPES)}, or a checkpoint.")
_METHODS = flags.DEFINE_multi_enum("methods", list(METHODS), [*METHODS, "shallow_deep"], "Methods to time.")
_DEPTHS = flags.DEFINE_list(
    "depths", None, "Exit depths; 0 for a spread. Unset: all, half and a quarter of the layers."
)
_BATCH = flags.DEFINE_integer("batch", 1, "Rows decoded together.", lower_bound=1)
_VOCAB = flags.DEFINE_integer("vocab_size", None, "Vocabulary, instead of the shape's own.", lower_bound=2)
_PRUNE_SIZE = flags.DEFINE_integer("prune_size", 64, "K, the tokens that `dvp` keeps.", lower_bound=1)
_SOURCE = flags.DEFINE_integer("source_length", 256, "Tokens of each source.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens that each row generates.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Dtype of the weights.")
_BRANCHING = flags.DEFINE_list("branch_every", "0", "Values of branch_every to compare; 0 for the backend's own.")
_UNEMBEDDINGS = flags.DEFINE_list(
    "unembeddings", "auto", "Forms of the unembedding to compare: auto, float, int8."
)
_WAITING = flags.DEFINE_list("max_waiting", "1", "Values of max_waiting to compare, for method shallow_deep.")
_BASELINES = flags.DEFINE_enum(
    "baselines", None, list(LIBRARIES), "Other decoders to time too; need the extra bench."
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds over all cases.", lower_bound=1)
_RESULTS = flags.DEFINE_string("results", None, "A folder for results.json and the plots.")


def main() -> None:
    """Runs the preset, or the benchmark that the flags describe."""
    if _PRESET.value:
        benchmarks = PRESETS[_PRESET.value]
    else:
        benchmark = make_benchmark(
            _SHAPE.value,
            _METHODS.value,
            [int(depth) for depth in _DEPTHS.value] if _DEPTHS.value else None,
            prune_size=_PRUNE_SIZE.value,
            branch_every=[int(number) or None for number in _BRANCHING.value],
            unembeddings=_UNEMBEDDINGS.value,
            max_waiting=[int(number) for number in _WAITING.value],
            vocab_size=_VOCAB.value,
            batch=_BATCH.value,
            source_length=_SOURCE.value,
            new_tokens=_TOKENS.value,
            dtype=_DTYPE.value,
            baselines=_BASELINES.value,
        )
        benchmarks = (benchmark,)
    run_benchmarks(benchmarks, _ROUNDS.value, _RESULTS.value)


if __name__ == "__main__":
    launch.run(main)
