"""Set before any import: no hub, and every test sees the same float32 products."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import jax
import pytest
from hypothesis import HealthCheck, settings

# Each new shape or structure compiles a program, so that a deadline would measure the compiler.
settings.register_profile("compiles", deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
settings.load_profile("compiles")


@pytest.fixture(scope="module", autouse=True)
def programs_are_let_go():
    """Each compiled program takes memory maps, of which Linux allows a process 65,530; beyond, XLA crashes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real checkpoints and data, where there is one."""
    folder = os.environ.get("DVP_SHARED")
    if not folder:
        pytest.skip("DVP_SHARED is not set")
    return Path(folder)
