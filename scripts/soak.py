"""Sends many requests through one engine and checks that its memory does not grow.

    python -m scripts.soak --requests=100000

A tiny random model decodes requests of random length; some are bad, some are cancelled. Prints the resident memory
after each tenth of them. Fails if it grows by more than --most_megabytes after the first tenth.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from dvp_jax import DecodeConfig, Engine, Model, T5Config
from dvp_jax.runs import launch
from dvp_jax.t5.model import init_params

_REQUESTS = flags.DEFINE_integer("requests", 100_000, "How many requests to send.", lower_bound=10)
_SLOTS = flags.DEFINE_integer("slots", 16, "Rows decoded together.", lower_bound=1)
_MOST = flags.DEFINE_float("most_megabytes", 32.0, "The most that memory may grow by.")


def resident_megabytes() -> float:
    """The resident memory of this process, as Linux counts it."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def requests(count: int) -> Iterator[list[int]]:
    """Random sources of 1 to 60 tokens, for two length buckets; one in fifty is empty, which is bad."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        length = 0 if rng.random() < 0.02 else int(rng.integers(1, 61))
        yield rng.integers(2, 500, length).tolist()


def main() -> None:
    """Sends the requests, and cancels one in a hundred."""
    config = T5Config(vocab_size=500, d_model=32, d_kv=8, d_ff=64, num_heads=4, num_layers=1, num_decoder_layers=4)
    model = Model(config, init_params(config, jax.random.key(0)))
    engine = Engine(model, DecodeConfig(threshold=0.3, prune_size=16, max_new_tokens=12), slots=_SLOTS.value)
    count, ended, failed, cancelled = _REQUESTS.value, 0, 0, 0
    first = last = 0.0
    with tqdm(total=count, unit="request") as bar:
        for result in engine.run(requests(count)):
            ended, failed = ended + 1, failed + (result.error is not None)
            cancelled += result.request_id % 100 == 0 and engine.cancel(result.request_id + 7)
            bar.update(1)
            if ended % max(1, count // 10) == 0:
                last = resident_megabytes()
                first = first or last
                bar.write(f"{ended} ended: {last:.0f} MB")
    growth = last - first
    print(f"{ended} ended, {failed} with an error; {cancelled} were cancelled; memory grew by {growth:.0f} MB")
    if ended != count:
        raise ValueError(f"requests is {count}, but {ended} ended")
    if growth > _MOST.value:
        raise ValueError(f"memory grew by {growth:.0f} MB; allowed: {_MOST.value:g}")


if __name__ == "__main__":
    launch.run(main, compile_cache=False)
