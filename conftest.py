"""Tests run on the CPU unless the environment says otherwise, and compile without LLVM's optimiser."""

import os
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu, which `vit-flax plan` asks, would make JAX seek a TPU

# These models run for milliseconds and compile for seconds, nearly all of it in LLVM's optimiser. Without it XLA's own
# rewriting and fusion stay as they are; the command line's tests run in processes of their own, with everything on.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

from vit_flax.cli.runtime import hide_absent_accelerators

hide_absent_accelerators()  # the CUDA plugin may be here as the compiler that `vit-flax plan` asks

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def _forgetting() -> Iterator[None]:
    """Drops what was compiled for a file's models, which no other file uses: it adds up to gigabytes."""
    yield
    jax.clear_caches()
