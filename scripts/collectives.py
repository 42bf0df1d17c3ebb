"""Counts what devices send each other for one token: the collectives in the compiled decode program.

    python -m scripts.collectives --shape=t5-11b --mesh=1,8 --batch=1

Compiles for virtual CPU devices, without making the weights. For each method, prints how many collectives a token
takes and how many bytes their results have on one device. The least is for a token that exits at the first depth,
the most for one that runs all layers. Other backends may join or split collectives; the CPU backend widens
bfloat16 to float32.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from flax import traverse_util
from jax.typing import DTypeLike

from dvp_jax.bench.collectives import least, most, per_token
from dvp_jax.decode.api import lower_decode
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.program import Encoded
from dvp_jax.report.table import Table
from dvp_jax.runs import launch
from dvp_jax.t5.config import SHAPES, T5Config
from dvp_jax.t5.hugging_face import parameter_targets
from dvp_jax.t5.load import Model
from dvp_jax.t5.sharding import check_mesh, make_mesh

METHODS = ("full", "calm", "dvp")

_SHAPE = flags.DEFINE_enum("shape", "t5-11b", list(SHAPES), "The shape of the model.")
_MESH = flags.DEFINE_list("mesh", ["1", "8"], "Sizes of the axes data and model.")
_BATCH = flags.DEFINE_integer("batch", 1, "Rows decoded together, a multiple of the size of the data axis.")
_DTYPE = flags.DEFINE_string("dtype", "bfloat16", "Dtype of the weights.")
_SOURCE_LENGTH = flags.DEFINE_integer("source_length", 512, "Tokens of each source.")


def compiled_decode(
    config: T5Config, mesh_sizes: list[int], cfg: DecodeConfig, *, batch: int, source_length: int, dtype: str
) -> str:
    """Compiles the decode program of a model whose weights are never made.

    Args:
        config: the shape of the model.
        mesh_sizes: sizes of the axes "data" and "model".
        cfg: how to decode.
        batch: rows decoded together.
        source_length: tokens of each source.
        dtype: dtype of the weights.

    Returns:
        The text of the compiled program, as HLO.

    Raises:
        ValueError: the mesh does not fit the model, or needs more devices than there are.
    """
    mesh = make_mesh(mesh_sizes)
    assert mesh is not None
    mesh = check_mesh(config, mesh)
    config, targets = parameter_targets(config, dtype, mesh)

    def abstract(shape: tuple[int, ...], dtype: DTypeLike, *axes: str) -> Any:
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)

    cross = abstract((batch, config.num_heads, source_length, config.d_kv), dtype, "data", "model")
    encoded = Encoded(
        cross=[(cross, cross)] * config.num_decoder_layers,
        ids=abstract((batch, source_length), jnp.int32, "data"),
        mask=abstract((batch, source_length), bool, "data"),
        active=abstract((batch,), bool, "data"),
    )
    model = Model(config, traverse_util.unflatten_dict(targets), mesh=mesh)
    text = lower_decode(model, encoded, cfg)[0].compile().as_text()
    assert text is not None
    return text


def main() -> None:
    """Prints the table."""
    rows = []
    for name in METHODS:
        cfg = DecodeConfig(method=name, branch_every=1)
        hlo = compiled_decode(
            SHAPES[_SHAPE.value],
            [int(size) for size in _MESH.value],
            cfg,
            batch=_BATCH.value,
            source_length=_SOURCE_LENGTH.value,
            dtype=_DTYPE.value,
        )
        low, high = per_token(hlo, least), per_token(hlo, most)
        kinds = ", ".join(f"{high.count[kind]} {kind} of {high.bytes[kind]:,}" for kind in high.count)
        counts = f"{low.count.total()} to {high.count.total()}"
        sizes = f"{low.bytes.total():,} to {high.bytes.total():,}"
        rows.append([f"`{name}`", counts, sizes, kinds])
    head = ["method", "collectives a token, least to most", "bytes a token, least to most", "at most"]
    print(Table(head, rows).markdown())


if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=64"
    launch.run(main, compile_cache=False)
