"""How does the cost of confidence grow with the vocabulary, with and without pruning?

    python -m experiments.vocab_scaling --workdir=runs/vocab_scaling --new_tokens=16 --rounds=3

The same model shape with vocabularies of 8,000 to 256,000, random weights, every token's exit forced to one
depth: time of confidence is what a token takes beyond `static`, which leaves at the same depth and asks for none,
all of them reading the float unembedding; where `dvp` would by itself read an int8 copy (`DecodeConfig.screen`),
that is timed too, and can be faster than `static`. FLOPs are given as the paper's code counts them, and as
unembedding products beyond the single one of `static`. How much of a vocabulary must be kept is a question about a
trained model: with any config of experiments.evaluate,

    python -m experiments.vocab_scaling --workdir=runs/vocab_scaling --new_tokens=16 --rounds=3 \
        --config=experiments/configs/demo.py --config.batch_size=16

also finds the K that keeps 99 % of the full model's choices at the config's depths p. Writes vocab_scaling.json,
a plot and report.html under --workdir; prints tables. The flags --shape, --dtype, --batch, --prune_size,
--source_length, --new_tokens and --rounds are those of experiments.benchmark, which does the timing. Seen: 6
minutes on two busy CPU cores, without the int8 copy.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from dvp_jax.analysis.run import needed_sizes
from dvp_jax.analysis.scaling import coverage_table, scaling_rows, scaling_table
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.evaluate.experiment import open_experiment
from dvp_jax.report.html import Section, tables_of, write_report
from dvp_jax.report.plots import vocabulary_scaling
from dvp_jax.runs import launch
from dvp_jax.runs.files import lock_workdir, write_json
from dvp_jax.runs.provenance import versions
from dvp_jax.t5.config import SHAPES
from experiments.benchmark import Run, grid, measure

METHODS = ("static", "calm", "dvp")
TIMING_FLAGS = ("shape", "dtype", "batch", "prune_size", "source_length", "new_tokens", "rounds")
"""Of experiments.benchmark."""

_CONFIG = config_flags.DEFINE_config_file("config", None, "A trained model: how much of its vocabulary is needed.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Where vocab_scaling.json and the plot go.", required=True)
_SIZES = flags.DEFINE_list("vocab_sizes", "8000,16000,32000,64000,128000,256000", "Vocabularies to time.")
_EXIT = flags.DEFINE_integer("exit_layer", None, "Where every token leaves. Unset: half the layers.")


def planned_runs(timing: Mapping[str, Any]) -> list[Run]:
    """A run of the benchmark for each vocabulary."""
    fields = dict(timing)
    shape, prune_size, _ = (fields.pop(name) for name in ("shape", "prune_size", "rounds"))
    if shape not in SHAPES:
        raise ValueError(f"shape is {shape!r}; allowed: {', '.join(SHAPES)}, with weights for any vocabulary")
    layers = SHAPES[shape].num_decoder_layers
    exit_layer = layers // 2 if _EXIT.value is None else _EXIT.value
    if not 2 <= exit_layer <= layers:
        raise ValueError(f"exit_layer is {exit_layer}; allowed: from 2 to {layers}")
    sizes = [int(size) for size in _SIZES.value]
    if not sizes or min(sizes) < prune_size:
        raise ValueError(f"vocab_sizes is {sizes}; allowed: at least one, each at least prune_size, {prune_size}")
    cases = grid(layers, METHODS, [exit_layer], prune_size=prune_size, screen="none")
    if DecodeConfig(method="dvp").screens(jax.default_backend(), fields["batch"]):
        cases += grid(layers, ("dvp",), [exit_layer], prune_size=prune_size, screen="int8")
    return [Run(shape, cases, vocab_size=size, **fields) for size in sizes]


def time_confidence(runs: Sequence[Run], rounds: int) -> list[dict[str, Any]]:
    """Rows of all runs."""
    rows = []
    for run in runs:
        assert run.vocab_size
        config = dataclasses.replace(SHAPES[run.shape], vocab_size=run.vocab_size)
        rows += scaling_rows(measure(run, rounds), config)
    return rows


def main() -> None:
    """Looks at a trained model if there is one, then times."""
    config = _CONFIG.value
    timing: dict[str, Any] = {name: flags.FLAGS[name].value for name in TIMING_FLAGS}
    runs = planned_runs(timing)
    coverage: dict[str, list[dict[str, Any]]] = {}
    made_by: dict[str, Any] = {"timing": timing, "device": jax.devices()[0].device_kind, "versions": versions()}
    with contextlib.ExitStack() as stack:
        if config:
            experiment = stack.enter_context(open_experiment(config.to_dict(), _WORKDIR.value, only="dvp"))
            workdir, made_by = experiment.workdir, {**experiment.made_by, **made_by}
            coverage = needed_sizes(experiment, config)
        else:
            workdir = stack.enter_context(lock_workdir(_WORKDIR.value))
        rows = time_confidence(runs, timing["rounds"])
        plot = workdir / "vocab_scaling.svg"
        vocabulary_scaling(rows, plot)
        write_json(workdir / "vocab_scaling.json", {"rows": rows, "coverage": coverage, **made_by})
        found = "\n\n".join([scaling_table(rows), *([coverage_table(coverage)] if coverage else [])])
        plots = (("time and FLOPs of confidence against the vocabulary", plot),)
        section = Section("Cost of confidence", "", tables_of(found), plots)
        write_report(workdir / "report.html", "Vocabulary scaling", [section], made_by)
    print(found)


if __name__ == "__main__":
    launch.run(main)
