"""A second start of the process loads its programs instead of compiling them."""

import os
import subprocess
import sys

from tests.launching import QUICK_COMPILER
from tests.models import random_model, save

DECODE = """
import sys
from collections import Counter
import jax
seen = Counter()
jax.monitoring.register_event_listener(lambda event, **_: seen.update([event]))
import dvp_jax
model = dvp_jax.load_model(sys.argv[1])
seen.clear()
dvp_jax.generate(model, [[5, 6, 7]], [[1, 1, 1]], dvp_jax.DecodeConfig(max_new_tokens=4, prune_size=8))
print(*(seen[f"/jax/compilation_cache/{event}"] for event in ("cache_hits", "cache_misses")))
"""


def test_a_second_process_reuses_the_compile_cache(tmp_path):
    folder = save(random_model("t5", num_layers=1, num_decoder_layers=3), tmp_path / "model")
    environment = os.environ | QUICK_COMPILER
    environment |= {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }

    def start() -> tuple[int, int]:
        command = [sys.executable, "-c", DECODE, str(folder)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        hits, misses = map(int, run.stdout.split())
        return hits, misses

    first, second = start(), start()
    assert first[0] == 0 and first[1] > 0
    assert second == (first[1], 0)
