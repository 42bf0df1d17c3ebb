"""Milliseconds per token of each method, exits forced to given depths, side by side in one process.

    python -m experiments.benchmark --json=runs/benchmark.json

Random weights of a published shape, so that speed is separated from a model's quality: the thresholds force
every token to exit at the depth asked for. Cases run in turn, A B A B, and medians are reported. Hugging Face's
eager PyTorch runs beside them on the same weights where PyTorch is installed.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from dvp_jax import launch
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.generate import decode, encode
from dvp_jax.exits.thresholds import ALWAYS, NEVER
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.load import Model
from dvp_jax.t5.model import init_params

SHAPES = {
    "t5-small": T5Config(d_model=512, d_ff=2048, num_heads=8, num_layers=6, num_decoder_layers=6),
    "t5-base": T5Config(d_model=768, d_ff=3072, num_heads=12, num_layers=12, num_decoder_layers=12),
    "t5-large": T5Config(d_model=1024, d_ff=4096, num_heads=16, num_layers=24, num_decoder_layers=24),
}

_SHAPE = flags.DEFINE_enum("shape", "t5-base", list(SHAPES), "Shape of the model.")
_BATCH = flags.DEFINE_integer("batch", 1, "Rows decoded together.", lower_bound=1)
_SOURCE = flags.DEFINE_integer("source_length", 256, "Source tokens.", lower_bound=1)
_TOKENS = flags.DEFINE_integer("new_tokens", 64, "Tokens generated.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Dtype of the weights.")
_LOOPS = flags.DEFINE_list("layer_loops", "cond,while", "Loops over layers to compare.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timed rounds over all cases.", lower_bound=1)
_PEER = flags.DEFINE_boolean("hugging_face", True, "Run Hugging Face's eager PyTorch too, where installed.")
_JSON = flags.DEFINE_string("json", None, "Where to write the figures.")


def forced_exit(depth: int, num_layers: int, max_new_tokens: int) -> jax.Array:
    """Thresholds by which every token exits at `depth`."""
    row = np.full(num_layers, NEVER)
    row[depth - 1 : num_layers - 1] = ALWAYS
    return jnp.asarray(np.broadcast_to(row, (max_new_tokens, num_layers)))


def cases(model: Model, encoded: Any, layer_loops: list[str], new_tokens: int) -> dict[str, Callable[[], Any]]:
    """One call that decodes the whole output, per method, exit depth and loop over layers."""
    layers = model.config.num_decoder_layers
    half, quarter = layers // 2, layers // 4
    settings: list[tuple[str, dict[str, Any], int]] = [
        ("full", {}, layers),
        ("static", {"static_exit_layer": half}, half),
    ]
    settings += [(method, {}, depth) for method in ("calm", "dvp") for depth in (layers, half, quarter)]
    out: dict[str, Callable[[], Any]] = {}
    for loop in layer_loops:
        for method, fields, depth in settings:
            cfg = DecodeConfig(method=method, max_new_tokens=new_tokens, layer_loop=loop, **fields)
            thresholds = forced_exit(depth, layers, new_tokens)
            out[f"{method} exit {depth} {loop}"] = functools.partial(decode, model, encoded, cfg, thresholds)
    return out


def hugging_face_case(model: Model, ids: np.ndarray, new_tokens: int) -> Callable[[], Any] | None:
    """The same weights in Hugging Face's eager PyTorch, or None where it is not installed."""
    try:
        import torch
        import transformers
    except ImportError:
        return None
    from dvp_jax.t5.convert import hugging_face_tensors

    config = transformers.T5Config(**{**model.config.to_hugging_face(), "eos_token_id": 1})
    peer = transformers.T5ForConditionalGeneration(config).eval()
    tensors = hugging_face_tensors(model.config, model.params)
    missing, unexpected = peer.load_state_dict({k: torch.tensor(v) for k, v in tensors.items()}, strict=False)
    assert not unexpected and all("embed_tokens" in name or name == "lm_head.weight" for name in missing)
    peer.tie_weights()
    source = torch.tensor(ids).long()
    encoded = peer.encoder(input_ids=source)

    def run() -> Any:
        with torch.inference_mode():
            return peer.generate(
                encoder_outputs=encoded,
                attention_mask=torch.ones_like(source),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                num_beams=1,
            )

    return run


def measure(calls: dict[str, Callable[[], Any]], rounds: int, new_tokens: int) -> dict[str, dict[str, float]]:
    """Median, least and most ms per token of each call, over rounds in which all run in turn."""
    first: dict[str, float] = {}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in tqdm(calls.items(), desc="compiling", unit="case"):
        start = time.perf_counter()
        jax.block_until_ready(call())
        first[name] = time.perf_counter() - start
    for _ in tqdm(range(rounds), desc="timing", unit="round"):
        for name, call in calls.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append((time.perf_counter() - start) * 1e3 / new_tokens)
    return {
        name: {
            "ms_per_token": statistics.median(values),
            "least": min(values),
            "most": max(values),
            "first_call_s": first[name],
        }
        for name, values in times.items()
    }


def main() -> None:
    """Runs the benchmark."""
    # No end token, so that random weights generate the full length.
    config = dataclasses.replace(SHAPES[_SHAPE.value], eos_token_id=-1)
    model = Model(config, init_params(config, jax.random.key(0), jnp.dtype(_DTYPE.value)))
    ids = np.random.default_rng(0).integers(2, 32000, (_BATCH.value, _SOURCE.value))
    encoded = encode(model, ids, np.ones_like(ids))

    calls = cases(model, encoded, _LOOPS.value, _TOKENS.value)
    peer = hugging_face_case(model, ids, _TOKENS.value) if _PEER.value else None
    if peer is not None:
        calls["Hugging Face eager"] = peer
    rows = measure(calls, _ROUNDS.value, _TOKENS.value)

    base = rows[f"full exit {config.num_decoder_layers} {_LOOPS.value[0]}"]["ms_per_token"]
    print(f"jax {jax.__version__}, {jax.default_backend()}, {_SHAPE.value}, batch {_BATCH.value}, {_DTYPE.value}")
    print(f"{'case':28} {'ms/token':>9} {'least':>7} {'most':>7} {'speed-up':>9} {'first call s':>13}")
    for name, row in rows.items():
        print(
            f"{name:28} {row['ms_per_token']:9.2f} {row['least']:7.2f} {row['most']:7.2f} "
            f"{base / row['ms_per_token']:8.2f}x {row['first_call_s']:13.1f}"
        )
    if _JSON.value:
        report = {
            "flags": {f.name: f.value for f in (_SHAPE, _BATCH, _SOURCE, _TOKENS, _DTYPE, _ROUNDS)},
            "versions": {"jax": jax.__version__, "python": platform.python_version()},
            "backend": jax.default_backend(),
            "rows": rows,
        }
        Path(_JSON.value).parent.mkdir(parents=True, exist_ok=True)
        Path(_JSON.value).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    launch.run(main)
