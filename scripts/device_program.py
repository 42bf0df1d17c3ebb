"""Compiles a decode program for a device that is not there, and counts what one token takes on it.

    python -m scripts.device_program --device=h200 --shape=t5-large --method=dvp --exit=12,24

Needs the extra "cuda" or "tpu", but no such device, and makes no weights. For each depth at which all rows exit,
prints kernels by part, copies, sorts, conditionals, host round trips, bytes to read, and a *modelled* time: what
these counts cost by a model that was fitted to one device and one shape. Nothing here is measured.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from dvp_jax.bench.device_program import PARTS, TokenCounts, count_token, parse
from dvp_jax.bench.devices import DEVICES, Device, compile_decode, device_mesh, memory
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.layer_loop import grouped
from dvp_jax.exits.cost import bytes_per_token
from dvp_jax.report.table import Table
from dvp_jax.runs import launch
from dvp_jax.runs.files import check_output, write_json
from dvp_jax.t5.backend import tracing_for
from dvp_jax.t5.config import SHAPES, T5Config

METHODS = ("full", "static", "calm", "dvp")

_DEVICE = flags.DEFINE_string("device", "h200", f"The device to compile for: {', '.join(DEVICES)}.")
_SHAPE = flags.DEFINE_enum("shape", "t5-large", list(SHAPES), "The shape of the model.")
_LAYERS = flags.DEFINE_integer("layers", None, "Decoder layers, instead of the shape's own.")
_METHOD = flags.DEFINE_enum("method", "dvp", METHODS, "The method of decoding.")
_EXIT = flags.DEFINE_list("exit", [], "Depths at which all rows exit. Default: the last one.")
_BATCH = flags.DEFINE_integer("batch", 1, "Rows decoded together.", lower_bound=1)
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Dtype of the weights.")
_EXIT_DEPTHS = flags.DEFINE_list(
    "exit_depths", [], "Depths that are asked; one number n: every n-th. Default: all."
)
_BRANCH_EVERY = flags.DEFINE_integer("branch_every", None, "Layers between branches. Default: the device's.")
_SOURCE_LENGTH = flags.DEFINE_integer("source_length", 256, "Tokens of each source.", lower_bound=1)
_NEW_TOKENS = flags.DEFINE_integer("new_tokens", 64, "The most tokens to generate.", lower_bound=1)
_MESH = flags.DEFINE_list("mesh", [], "Sizes of the axes data and model, for v5e. Default: one device.")
_ENGINE = flags.DEFINE_boolean("engine", False, "Compile the engine's step, with --batch slots.")
_JSON = flags.DEFINE_string("json", None, "Write the counts to this file, too.")


def exit_depths(cfg: DecodeConfig, config: T5Config, asked_for: list[int]) -> list[int]:
    """The depths at which all rows are to exit: those asked for, or the last one.

    Raises:
        ValueError: no token can exit there.
    """
    policy = cfg.policy(config.num_decoder_layers, config.vocab_size)
    allowed = [*policy.candidates, policy.last_depth]
    for depth in asked_for:
        if depth not in allowed:
            raise ValueError(f"exit is {depth}; allowed with these settings: {', '.join(map(str, allowed))}")
    return asked_for or [policy.last_depth]


def layers_that_run(exit_depth: int, group_starts: Sequence[int], last_depth: int) -> int:
    """How many layers a token runs that exits at a depth: its group of layers is finished."""
    return next((start - 1 for start in group_starts if start > exit_depth), last_depth)


def describe(
    counts: TokenCounts, device: Device, num_bytes: float, exit_depth: int, num_layers: int
) -> dict[str, Any]:
    """What one token takes, as it is written to JSON."""
    kernels = counts.kernels.total()
    round_trips = counts.callbacks + device.reads_predicates * (1 + counts.conditionals)
    return {
        "exit": exit_depth,
        "layers": num_layers,
        "kernels": kernels,
        "kernels_by_part": {part: counts.kernels[part] for part in PARTS},
        "kernels_by_layer": dict(sorted(counts.layers.items())),
        "kernels_by_question": dict(sorted(counts.questions.items())),
        "copies": len(counts.copies),
        "largest_copy_bytes": max(counts.copies, default=0),
        "prefetches": counts.prefetches,
        "sorts": counts.sorts,
        "conditionals": counts.conditionals,
        "collectives": counts.collectives,
        "host_round_trips": round_trips,
        "bytes": int(num_bytes),
        "modelled": {
            name: round(model.us(num_bytes, kernels, counts.conditionals)) for name, model in device.models.items()
        },
    }


def table(tokens: list[dict[str, Any]]) -> Table:
    """A column for each exit depth."""
    counters = ["copies", "largest_copy_bytes", "prefetches", "conditionals", "collectives", "host_round_trips"]
    rows = [["layers that run", *(str(token["layers"]) for token in tokens)]]
    rows += [["kernels", *(str(token["kernels"]) for token in tokens)]]
    rows += [[f"- {part}", *(str(token["kernels_by_part"][part]) for token in tokens)] for part in PARTS]
    for name, key in (("a layer", "kernels_by_layer"), ("a question", "kernels_by_question")):
        rows.append([f"kernels of {name}", *(spread(token[key]) for token in tokens)])
    rows += [[name.replace("_", " "), *(f"{token[name]:,}" for token in tokens)] for name in counters]
    rows.append(["values sorted at once", *(", ".join(map(str, token["sorts"])) or "no sort" for token in tokens)])
    rows.append(["MB to read on all devices", *(f"{token['bytes'] / 1e6:,.0f}" for token in tokens)])
    rows += [[name, *(f"{token['modelled'][name]:,}" for token in tokens)] for name in tokens[0]["modelled"]]
    return Table(["one token", *(f"exits at {token['exit']}" for token in tokens)], rows)


def spread(kernels: dict[int, int]) -> str:
    """Kernels of one depth: "12", or "11 to 13" where depths differ."""
    if not kernels:
        return ""
    low, high = min(kernels.values()), max(kernels.values())
    return str(low) if low == high else f"{low} to {high}"


def main() -> None:
    """Prints the table."""
    if _JSON.value:
        check_output(_JSON.value, "json")
    exits = _integers("exit", _EXIT.value)
    config = SHAPES[_SHAPE.value]
    if _LAYERS.value is not None:
        config = dataclasses.replace(config, num_decoder_layers=_LAYERS.value)
    asked = _integers("exit_depths", _EXIT_DEPTHS.value)
    if _METHOD.value == "static" and len(exits) != 1:
        raise ValueError(f"exit is {exits}; allowed with method static: one depth")
    cfg = DecodeConfig(
        method=_METHOD.value,
        max_new_tokens=_NEW_TOKENS.value,
        static_exit_layer=exits[0] if _METHOD.value == "static" else None,
        exit_depths=asked[0] if len(asked) == 1 else tuple(asked) or None,
        branch_every=_BRANCH_EVERY.value,
    )
    exits = exit_depths(cfg, config, exits)
    jax.config.update("jax_platforms", "cpu")
    mesh = device_mesh(_DEVICE.value, _integers("mesh", _MESH.value) or [1, 1])
    device = DEVICES[_DEVICE.value]
    size: dict[str, Any] = {"batch": _BATCH.value, "source_length": _SOURCE_LENGTH.value}
    with tracing_for(device.backend):
        program, compiled = compile_decode(mesh, config, cfg, dtype=_DTYPE.value, engine=_ENGINE.value, **size)
    policy = program.policy
    hlo = parse(compiled.as_text() or "")
    deeper = range(policy.first_exit + 1, policy.last_depth + 1)
    starts = [group[0] for group in grouped(deeper, policy.candidates, program.branch_every)]
    num_layers = [layers_that_run(depth, starts, policy.last_depth) for depth in exits]
    num_bytes = bytes_per_token(
        np.array(num_layers),
        policy,
        config,
        new_tokens=cfg.max_new_tokens,
        itemsize=jnp.dtype(_DTYPE.value).itemsize,
        **size,
    )
    prune_depth = cfg.prune_layer if policy.kept_rows else 0
    tokens = [
        describe(count_token(hlo, depth, starts, prune_depth), device, num_bytes[index], depth, num_layers[index])
        for index, depth in enumerate(exits)
    ]
    needed = memory(compiled)
    print(table(tokens).markdown())
    fits = "fits" if sum(needed.values()) <= device.memory else "does not fit"
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in needed.items())
    print(f"\nMB on one device: {parts}; this {fits} {device.memory / 1e9:,.0f} GB.")
    print(
        "Counted in the compiled program. Times are modelled, not measured."
        if device.models
        else "No time was modelled."
    )
    if _JSON.value:
        result = {"settings": {flag.name: flag.value for flag in _FLAGS}, "memory_bytes": needed, "tokens": tokens}
        write_json(Path(_JSON.value), result)


_FLAGS = (
    _DEVICE,
    _SHAPE,
    _LAYERS,
    _METHOD,
    _BATCH,
    _DTYPE,
    _EXIT_DEPTHS,
    _BRANCH_EVERY,
    _SOURCE_LENGTH,
    _NEW_TOKENS,
)


def _integers(name: str, values: list[str]) -> list[int]:
    try:
        return [int(value) for value in values]
    except ValueError:
        raise ValueError(f"{name} is {','.join(values)}; allowed: integers") from None


if __name__ == "__main__":
    # Autotuning needs the device.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    launch.run(main, compile_cache=False)
