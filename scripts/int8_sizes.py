"""From which size of W on does its int8 copy pay? Times dvp with both forms, on random weights of several sizes.

python scripts/int8_sizes.py
"""

from __future__ import annotations

import dataclasses
import itertools

from dvp_jax.bench.cases import Benchmark, grid
from dvp_jax.bench.timing import measure
from dvp_jax.report.table import Table
from dvp_jax.runs import launch
from dvp_jax.t5.config import SHAPES, T5Config

SIZES = ((16_384, 128), (32_128, 128), (32_128, 256), (64_256, 256), (32_128, 512))
"""V and d_model."""


def main() -> None:
    """Prints the table."""
    small = T5Config(num_heads=4, num_layers=2, num_decoder_layers=4)
    rows = []
    for vocab_size, d_model in SIZES:
        SHAPES["small"] = dataclasses.replace(small, vocab_size=vocab_size, d_model=d_model, d_ff=4 * d_model)
        cells = [f"{vocab_size:,} x {d_model}"]
        for size in (64, 512):
            forms = (grid(4, ("dvp",), [2], prune_size=size, unembedding=form) for form in ("float", "int8"))
            benchmark = Benchmark("small", (*itertools.chain(*forms),), source_length=64, new_tokens=32)
            cells += [f"{row['ms_per_token']:.2f}" for row in measure(benchmark, 15)]
        rows.append(cells)
    print(Table(["W", "K = 64: W", "copy", "K = 512: W", "copy"], rows).markdown())


if __name__ == "__main__":
    launch.run(main)
