"""What must be set before anything imports JAX, and what the tests of several folders share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"
# Several processes compile the same programs: the workers of pytest-xdist, and the launchers that tests start.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# The models are tiny: PyTorch's threads would spend eight times as long, waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from tests.launching import Checkpoint

# Each new shape or structure compiles a program, so that a deadline would measure the compiler.
settings.register_profile("compiles", deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
settings.load_profile("compiles")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The folders of the longest files come first, so that no worker waits for another at the end."""
    items.sort(key=lambda item: item.path.parent.name not in ("train", "t5"))


@pytest.fixture(scope="module", autouse=True)
def clear_compiled_programs() -> Iterator[None]:
    """Each compiled program takes memory maps, of which Linux allows a process 65,530; beyond, XLA crashes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compiler() -> Iterator[None]:
    """Compiles with few of XLA's optimizations, in two thirds of the time.

    For modules whose subject is what surrounds the arithmetic: loops, batches, caches, files. The arithmetic is
    compared with PyTorch as users compile it, in tests/t5, tests/decode/test_reference.py and test_trace.py.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints and data, where there is one."""
    folder = os.environ.get("DVP_SHARED")
    if not folder:
        pytest.skip("DVP_SHARED is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A tiny random model, for tests that do not change its folder."""
    from tests.launching import make_checkpoint

    return make_checkpoint(tmp_path_factory.mktemp("model"))
