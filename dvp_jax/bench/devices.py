"""Devices that need not be here: compiling a decode program for one, and a model of a token's time there."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct, traverse_util
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dvp_jax.decode.api import decode_arguments
from dvp_jax.decode.config import DecodeConfig
from dvp_jax.decode.lanes import _advance
from dvp_jax.decode.program import DecodeInputs, DecodeProgram, Encoded, Settings
from dvp_jax.decode.token_loop import decode_tokens, initial_state
from dvp_jax.t5.config import T5Config
from dvp_jax.t5.hugging_face import parameter_targets
from dvp_jax.t5.int8 import Int8Unembedding
from dvp_jax.t5.load import Model
from dvp_jax.t5.sharding import AXES, check_mesh
from dvp_jax.t5.stacked import StackedKeysValues


@dataclasses.dataclass(frozen=True)
class TimeModel:
    """Microseconds of a token: bytes / bandwidth + kernels * kernel_us + conditionals * conditional_us + token_us.

    It was fitted to times of one device and one model, and is an estimate anywhere else (docs/performance.md).

    Attributes:
        bandwidth: bytes a second that the device copies, measured.
        kernel_us: of a kernel.
        conditional_us: of a conditional.
        token_us: of the loop itself.
    """

    bandwidth: float
    kernel_us: float
    conditional_us: float
    token_us: float

    def us(self, num_bytes: float, kernels: int, conditionals: int) -> float:
        """Microseconds of a token that reads so many bytes, in so many kernels and conditionals."""
        own = self.kernel_us * kernels + self.conditional_us * conditionals + self.token_us
        return num_bytes / self.bandwidth * 1e6 + own


@dataclasses.dataclass(frozen=True)
class Device:
    """A device to compile for that need not be here.

    Attributes:
        backend: of JAX.
        extra: the extra of this package that installs its compiler.
        package: the module that the extra installs.
        memory: bytes.
        reads_predicates: whether the host reads the predicate of each loop and conditional.
        models: of a token's time by name; empty where nothing was measured.
    """

    backend: str
    extra: str
    package: str
    memory: int
    reads_predicates: bool
    models: dict[str, TimeModel]


DEVICES = {
    # Fitted to an H200, T5-large in bfloat16 at batch 1, jax 0.11.2: as XLA runs it by default, and with
    # conditionals and loops captured in CUDA graphs (--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL).
    "h200": Device(
        backend="gpu",
        extra="cuda",
        package="jax_plugins.xla_cuda13",
        memory=141_000_000_000,
        reads_predicates=True,
        models={
            "modelled us": TimeModel(4.3e12, 1.9, 13.0, 99.0),
            "modelled us, captured": TimeModel(4.3e12, 1.5, 13.6, 90.0),
        },
    ),
    "v5e": Device(
        backend="tpu", extra="tpu", package="libtpu", memory=16_000_000_000, reads_predicates=False, models={}
    ),
}

H200_TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000
  l2_cache_size: 62914560
  clock_rate_ghz: 1.98
  device_memory_size: 150000000000
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
runtime_version { major: 13 minor: 0 patch: 0 }
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 20 }
device_description_str: "NVIDIA H200"
"""
"""What XLA must know of an H200 to compile for it: `stream_executor.GpuTargetConfigProto` as text."""


@struct.dataclass
class _Arguments:
    """What the decode loop takes beside parameters and sources, all of it abstract but the program's key."""

    program: DecodeProgram = struct.field(pytree_node=False)
    int8: Int8Unembedding | None
    stacked: StackedKeysValues | None
    settings: Settings


def device_mesh(name: str, sizes: list[int]) -> Mesh:
    """A mesh of devices that are not there.

    Args:
        name: of the device, a key of `DEVICES`.
        sizes: of the axes "data" and "model".

    Raises:
        ValueError: an unknown device, or more devices than the compiler is told of.
        ImportError: the compiler for the device is not installed.
    """
    if name not in DEVICES:
        raise ValueError(f"device is {name!r}; allowed: {', '.join(DEVICES)}")
    device = DEVICES[name]
    try:
        missing = importlib.util.find_spec(device.package) is None
    except ModuleNotFoundError:  # the package that holds it
        missing = True
    if missing:
        raise ImportError(f"device {name} needs the extra {device.extra!r}: pip install 'dvp-jax[{device.extra}]'")
    most = 1 if name == "h200" else 4
    if len(sizes) != 2 or min(sizes) < 1 or np.prod(sizes) > most:
        raise ValueError(
            f"mesh is {sizes}; allowed for {name}: two integers of at least 1, at most {most} devices"
        )
    # The compiler must not look for devices, and several may run at a time.
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = os.environ["TPU_SKIP_MDS_QUERY"] = "1"
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    if name == "h200":
        options: dict[str, Any] = {"target_config": H200_TARGET, "topology": "1x1x1"}
        topology = topologies.get_topology_desc(platform="cuda", topology_name="any", **options)
    else:
        options = {"chips_per_host_bounds": (2, 2, 1)}
        topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2x1", **options)
    return Mesh(np.array(topology.devices[: np.prod(sizes)]).reshape(sizes), AXES, (AxisType.Auto,) * 2)


def compile_decode(
    mesh: Mesh, config: T5Config, cfg: DecodeConfig, *, batch: int, source_length: int, dtype: str, engine: bool
) -> tuple[DecodeProgram, jax.stages.Compiled]:
    """Compiles the decode program of a model whose weights are never made.

    Args:
        mesh: from `device_mesh`.
        config: the shape of the model.
        cfg: how to decode.
        batch: rows decoded together.
        source_length: tokens of each source.
        dtype: dtype of the weights.
        engine: compile the engine's step instead of the loop over a batch's tokens.
    """
    is_divided = mesh.size > 1
    if is_divided:
        mesh = check_mesh(config, mesh)
    config, targets = parameter_targets(config, dtype, mesh if is_divided else None)

    def placed(tree: Any, *axes: str) -> Any:
        sharding = NamedSharding(mesh, PartitionSpec(*axes) if is_divided else PartitionSpec())
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    params = traverse_util.unflatten_dict(targets)
    params = params if is_divided else placed(params)
    cross = jax.ShapeDtypeStruct((batch, config.num_heads, source_length, config.d_kv), jnp.dtype(dtype))
    encoded = Encoded(
        cross=placed([(cross, cross)] * config.num_decoder_layers, "data", "model"),
        ids=placed(jax.ShapeDtypeStruct((batch, source_length), jnp.int32), "data"),
        mask=placed(jax.ShapeDtypeStruct((batch, source_length), bool), "data"),
        active=placed(jax.ShapeDtypeStruct((batch,), bool), "data"),
    )
    num_layers = config.num_decoder_layers

    def arguments(params: Any, encoded: Encoded) -> _Arguments:
        model = Model(config, params, mesh=mesh if is_divided else None)
        thresholds = jnp.zeros((cfg.max_new_tokens, num_layers), jnp.float32)
        program, inputs = decode_arguments(model, encoded, cfg, thresholds)
        return _Arguments(program, inputs.int8, inputs.stacked, inputs.settings)

    made = placed(jax.eval_shape(arguments, params, encoded))
    settings = placed(made.settings, "data")
    program, inputs = made.program, DecodeInputs(params, made.int8, made.stacked, encoded, None, settings)
    with Model(config, params, mesh=mesh if is_divided else None).context():
        if not engine:
            return program, decode_tokens.lower(program, inputs).compile()
        initial = jax.jit(partial(initial_state, program)).lower(encoded)
        shardings = initial.compile().output_shardings
        state = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            initial.out_info,
            shardings,
        )
        count = placed(jax.ShapeDtypeStruct((), jnp.int32))
        return program, _advance.lower(program, inputs, state, count, count).compile()


def memory(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes that the program needs on one device."""
    analysis: Any = compiled.memory_analysis()
    return {
        "arguments": analysis.argument_size_in_bytes,
        "results": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        "temporaries": analysis.temp_size_in_bytes,
    }
