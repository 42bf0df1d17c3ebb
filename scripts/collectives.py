"""Counts what devices send each other for a token: the collectives in the compiled decode program.

    python -m scripts.collectives --shape=t5-11b --mesh=1,8 --batch=1

Compiles for virtual CPU devices; the weights are never made. Prints, for each method, how many collectives a token
takes and how many bytes their results have on a device: at the least, where a token leaves at the first depth, and
at the most, where it runs through all of them. Other backends may join or split collectives; the CPU's widens
bfloat16 to float32.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import traverse_util

from dvp_jax.bench.collectives import least, most, per_token
from dvp_jax.decode.api import lower_decode
from dvp_jax.decode.cache import Encoded
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.runs import launch
from dvp_jax.t5.config import SHAPES, T5Config
from dvp_jax.t5.hugging_face import parameter_targets
from dvp_jax.t5.load import Model
from dvp_jax.t5.sharding import check_mesh, make_mesh

METHODS = ("full", "calm", "dvp")

_SHAPE = flags.DEFINE_enum("shape", "t5-11b", list(SHAPES), "Shape of the model.")
_MESH = flags.DEFINE_list("mesh", ["1", "8"], "Sizes of the axes data and model.")
_BATCH = flags.DEFINE_integer("batch", 1, "Rows decoded together; a multiple of the data axis.")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Dtype of the weights.")
_SOURCE_LENGTH = flags.DEFINE_integer("source_length", 512, "Tokens of each source.")


def compiled_decode(
    config: T5Config, sizes: list[int], cfg: DecodeConfig, *, batch: int, source_length: int, dtype: str
) -> str:
    """Text of the compiled decode program of such a model, whose weights are not made.

    Raises:
        ValueError: the mesh does not fit the model, or not enough devices.
    """
    mesh = make_mesh(sizes)
    assert mesh is not None
    mesh = check_mesh(config, mesh)
    config, targets = parameter_targets(config, dtype, mesh)
    over = jax.sharding.PartitionSpec

    def shape(size: tuple[int, ...], kind: Any, *axes: str) -> Any:
        return jax.ShapeDtypeStruct(size, kind, sharding=jax.sharding.NamedSharding(mesh, over(*axes)))

    cross = shape((batch, config.num_heads, source_length, config.d_kv), jnp.dtype(dtype), "data", "model")
    encoded = Encoded(
        cross=[(cross, cross)] * config.num_decoder_layers,
        mask=shape((batch, source_length), bool, "data"),
        active=shape((batch,), bool, "data"),
    )
    model = Model(config, traverse_util.unflatten_dict(targets), mesh=mesh)
    text = lower_decode(model, encoded, cfg)[0].compile().as_text()
    assert text is not None
    return text


def main() -> None:
    """Prints the table."""
    sizes = [int(size) for size in _MESH.value]
    print("| method | collectives a token, least to most | bytes a token, least to most | at most |")
    print("| --- | ---: | ---: | --- |")
    for name in METHODS:
        cfg = DecodeConfig(method=name, layer_loop="cond")
        hlo = compiled_decode(
            SHAPES[_SHAPE.value],
            sizes,
            cfg,
            batch=_BATCH.value,
            source_length=_SOURCE_LENGTH.value,
            dtype=_DTYPE.value,
        )
        low, high = per_token(hlo, least), per_token(hlo, most)
        kinds = ", ".join(f"{high.count[kind]} {kind} of {high.bytes[kind]:,}" for kind in high.count)
        print(
            f"| `{name}` | {low.count.total()} to {high.count.total()} | "
            f"{low.bytes.total():,} to {high.bytes.total():,} | {kinds} |"
        )


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=64"
    launch.run(main)
