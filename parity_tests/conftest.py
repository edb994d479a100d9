"""Parity is decided in float64 on the CPU, one torch thread, so that results do not depend on the machine's load."""

import os
from collections.abc import Iterator

# These models run for milliseconds and compile for seconds, nearly all of it in LLVM's optimiser. Without it XLA's own
# rewriting and fusion stay as they are; the command line's tests run in processes of their own, with everything on.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax
import pytest
import torch

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="module")
def _forgetting() -> Iterator[None]:
    """Drops what was compiled for a file's models, which no other file uses: it adds up to gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
