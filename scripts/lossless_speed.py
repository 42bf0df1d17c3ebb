"""How fast is `lossless` where every draft is right? Timed beside `full`, and `dvp` with exits at the same depth.

    python -m scripts.lossless_speed --shape=t5-base --exit=3 --max_waiting=8

The weights are random, but the layers after --exit add nothing to the hidden state. So every depth from there on
reads the same token, and all drafts are accepted: an upper bound of the speed-up on a trained model.
"""

from __future__ import annotations

import dataclasses
import statistics
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dvp_jax.bench.cases import forcing_thresholds, make_drafts_right
from dvp_jax.bench.timing import time_in_turn
from dvp_jax.decode.api import decode, encode
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.report.table import Table
from dvp_jax.runs import launch
from dvp_jax.t5.config import SHAPES
from dvp_jax.t5.load import Model
from dvp_jax.t5.model import init_params

_SHAPE = flags.DEFINE_enum("shape", "t5-base", list(SHAPES), "The shape of the model.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["bfloat16", "float32"], "Dtype of the weights.")
_EXIT = flags.DEFINE_integer("exit", 3, "Depth at which every token exits.", lower_bound=2)
_MAX_WAITING = flags.DEFINE_integer("max_waiting", 8, "Drafts that are verified together.", lower_bound=1)
_BATCH = flags.DEFINE_integer("batch", 1, "Rows decoded together.", lower_bound=1)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens that each row generates.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each method is timed.", lower_bound=1)


def main() -> None:
    """Prints the table."""
    config = dataclasses.replace(SHAPES[_SHAPE.value], eos_token_id=())  # no text ends by itself
    layers, exit_depth = config.num_decoder_layers, _EXIT.value
    if exit_depth >= layers:
        raise ValueError(f"exit is {exit_depth}; allowed: 2 to {layers - 1} for {_SHAPE.value}")
    params = init_params(config, jax.random.key(0), jnp.dtype(_DTYPE.value))
    make_drafts_right(config, params, exit_depth)
    model = Model(config, params, common_tokens=np.arange(4096, dtype=np.int32))
    ids = np.random.default_rng(0).integers(3, config.vocab_size, (_BATCH.value, 256))
    encoded = encode(model, ids, np.ones_like(ids))
    thresholds = forcing_thresholds(np.full(_NEW_TOKENS.value, exit_depth), layers)
    common: dict[str, Any] = {"max_new_tokens": _NEW_TOKENS.value, "max_waiting": _MAX_WAITING.value}
    methods = {
        "full": DecodeConfig(method="full", **common),
        "dvp": DecodeConfig(method="dvp", **common),
        "lossless": DecodeConfig(method="lossless", **common),
        "lossless, recent, K 256": DecodeConfig(method="lossless", prune_rule="recent", prune_size=256, **common),
    }
    calls = {name: partial(decode, model, encoded, cfg, thresholds) for name, cfg in methods.items()}
    seconds, errors = time_in_turn(calls, _ROUNDS.value)
    rows = []
    for name, own in seconds.items():
        if name in errors:
            rows.append([name, errors[name], "", ""])
            continue
        speed_up = statistics.median(full / value for full, value in zip(seconds["full"], own, strict=True))
        drafts = calls[name]().drafts
        accepted = "" if drafts is None else f"{100 * (1 - float(drafts.corrected.mean())):.1f} %"
        ms = 1e3 * statistics.median(own) / _NEW_TOKENS.value
        rows.append([name, f"{ms:.2f}", f"{speed_up:.2f}x", accepted])
    print(Table(["method", "ms a step", "speed-up", "drafts accepted"], rows).markdown())


if __name__ == "__main__":
    launch.run(main)
