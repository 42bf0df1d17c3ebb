"""How fast is `lossless` where every draft is right? Timed beside `full`, and `dvp` with exits at the same depth.

    python -m scripts.lossless_speed --shape=t5-base --exit=3 --max_waiting=8

The weights are random, but the layers after --exit add nothing to the hidden state. So every depth from there on
reads the same token, and all drafts are accepted: an upper bound of the speed-up on a trained model.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dvp_jax.decode.api import encode, lower_decode
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.exits.thresholds import ALWAYS, NEVER
from dvp_jax.report.table import Table
from dvp_jax.runs import launch
from dvp_jax.t5.config import SHAPES, T5Config
from dvp_jax.t5.load import Model
from dvp_jax.t5.model import Params, init_params

_SHAPE = flags.DEFINE_enum("shape", "t5-base", list(SHAPES), "The shape of the model.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["bfloat16", "float32"], "Dtype of the weights.")
_EXIT = flags.DEFINE_integer("exit", 3, "Depth at which every token exits.", lower_bound=2)
_MAX_WAITING = flags.DEFINE_integer("max_waiting", 8, "Drafts that are verified together.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 1, "Rows decoded together.", lower_bound=1)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens that each row generates.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each method is timed.", lower_bound=1)


def model_whose_drafts_are_right(config: T5Config, exit_depth: int, dtype: str) -> Model:
    """A random model whose layers after a depth add zero to the hidden state."""
    params: Params = init_params(config, jax.random.key(0), jnp.dtype(dtype))
    for index in range(exit_depth, config.num_decoder_layers):
        layer = params["decoder"][f"layers_{index}"]
        for part, weight in (("self_attention", "output"), ("cross_attention", "output"), ("feed_forward", "wo")):
            layer[part][weight] = jnp.zeros_like(layer[part][weight])
    return Model(config, params, common_tokens=np.arange(4096, dtype=np.int32))


def main() -> None:
    """Prints the table."""
    config = dataclasses.replace(SHAPES[_SHAPE.value], eos_token_id=-1)  # no text ends by itself
    layers, exit_depth = config.num_decoder_layers, _EXIT.value
    if exit_depth >= layers:
        raise ValueError(f"exit is {exit_depth}; allowed: 2 to {layers - 1} for {_SHAPE.value}")
    model = model_whose_drafts_are_right(config, exit_depth, _DTYPE.value)
    ids = np.random.default_rng(0).integers(3, config.vocab_size, (_BATCH.value, 256))
    encoded = encode(model, ids, np.ones_like(ids))
    exits = np.full((_NEW_TOKENS.value, layers), NEVER, np.float32)
    exits[:, exit_depth - 1 : layers - 1] = ALWAYS
    common: dict[str, Any] = {"max_new_tokens": _NEW_TOKENS.value, "max_waiting": _MAX_WAITING.value}
    methods = {
        "full": DecodeConfig(method="full", **common),
        "dvp": DecodeConfig(method="dvp", **common),
        "lossless": DecodeConfig(method="lossless", **common),
        "lossless, recent, K 256": DecodeConfig(method="lossless", prune_rule="recent", prune_size=256, **common),
    }
    programs, accepted = {}, {}
    for name, cfg in methods.items():
        lowered, inputs = lower_decode(model, encoded, cfg, jnp.asarray(exits))
        programs[name] = lowered.compile(), inputs
        out = jax.block_until_ready(programs[name][0](inputs))
        accepted[name] = "" if out.drafts is None else f"{100 * (1 - float(out.drafts.corrected.mean())):.1f} %"
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(_ROUNDS.value):
        for name, (program, inputs) in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program(inputs))
            times[name].append(1e3 * (time.perf_counter() - start) / _NEW_TOKENS.value)
    rows = []
    for name, values in times.items():
        speed_up = statistics.median(full / own for full, own in zip(times["full"], values, strict=True))
        rows.append([name, f"{statistics.median(values):.2f}", f"{speed_up:.2f}x", accepted[name]])
    print(Table(["method", "ms a step", "speed-up", "drafts accepted"], rows).markdown())


if __name__ == "__main__":
    launch.run(main)
