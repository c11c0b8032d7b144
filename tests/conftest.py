"""Shared fixtures: strict promotion around kernels, and a count of compilations."""

import os
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
# Compiling is what these tests cost: XLA's CPU back end takes 40 % less time when it does not
# optimise. (Set XLA_FLAGS yourself to test optimised programs.)
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest


@pytest.fixture
def strict_promotion() -> Iterator[None]:
    """Turn implicit dtype and rank promotion into errors inside one test of a kernel."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


@pytest.fixture
def x64() -> Iterator[None]:
    """Enable 64-bit types inside one test; restored even if the test fails."""
    with jax.enable_x64(True):
        yield
