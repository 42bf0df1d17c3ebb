"""The backend that programs are traced for. Code asks here where two forms of an operation differ in speed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

import jax

_named: ContextVar[str | None] = ContextVar("backend", default=None)


def backend() -> str:
    """The backend that a program is traced for: "cpu", "gpu" or "tpu".

    It is JAX's default backend, unless `tracing_for` names another.
    """
    return _named.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(name: str) -> Iterator[None]:
    """Programs traced within this context are for the backend `name`, which need not be here.

    JAX keeps traced programs by their function and shapes, not by this name. So trace a function for one backend
    only, or call `jax.clear_caches` between.
    """
    token = _named.set(name)
    try:
        yield
    finally:
        _named.reset(token)
