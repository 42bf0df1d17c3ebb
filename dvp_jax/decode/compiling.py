"""How XLA compiles decode programs: options of each program, and a `jax.jit` that takes them from the program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax

from dvp_jax.decode.program import CompilerOptions, DecodeProgram
from dvp_jax.exits.policy import ExitPolicy

CAPTURED: CompilerOptions = (
    ("xla_gpu_enable_command_buffer", "FUSION,CUBLAS,CUBLASLT,CUSTOM_CALL,CUDNN,CONDITIONAL,WHILE"),
    ("xla_gpu_graph_min_graph_size", 1),
)
"""The token loop and its conditionals run as one CUDA graph, which the GPU walks through without the host."""

_CAPTURES_SINCE = (0, 11)
"""The first jax whose XLA was seen to take these options for one program."""


def compiler_options(
    capture: bool | None, policy: ExitPolicy, backend: str, jax_version: tuple[int, ...] = jax.__version_info__
) -> CompilerOptions:
    """The XLA options of a decode program.

    A captured loop saved 17 % of the time of T5-large's full model on an H200 (docs/performance.md). Captured
    conditionals inside one another have not run on a device yet, so that is nobody's default.

    Args:
        capture: `DecodeConfig.capture`. None: only where the loop holds no conditional.
        policy: after which layer a token exits.
        backend: of JAX, such as "gpu". Other backends do not know these options.
        jax_version: an older one does not know them either.
    """
    if backend != "gpu" or jax_version < _CAPTURES_SINCE:
        return ()
    has_conditionals = policy.first_exit < policy.last_depth and policy.loop != "all_layers"
    return CAPTURED if capture or (capture is None and not has_conditionals) else ()


class ProgramJit:
    """`jax.jit` of a function whose first argument, a `DecodeProgram`, is static and names its XLA options.

    Args:
        function: takes a program, then arrays.
        **arguments: of `jax.jit`.
    """

    def __init__(self, function: Callable[..., Any], **arguments: Any) -> None:
        @functools.cache
        def jitted(options: CompilerOptions) -> Any:
            return jax.jit(function, static_argnums=0, compiler_options=dict(options) or None, **arguments)

        self._jitted = jitted

    def __call__(self, program: DecodeProgram, *arguments: Any) -> Any:
        return self._jitted(program.compiler_options)(program, *arguments)

    def lower(self, program: DecodeProgram, *arguments: Any) -> jax.stages.Lowered:
        """As `jax.jit(...).lower`."""
        return self._jitted(program.compiler_options).lower(program, *arguments)

    def _cache_size(self) -> int:
        """Programs without options that were compiled, for tests."""
        return self._jitted(())._cache_size()
