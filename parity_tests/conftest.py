"""Parity is decided in float64 on the CPU, one torch thread, so that results do not depend on the machine's load.

`VIT_FLAX_ATTENTION=plain pytest parity_tests` decides it with another attention back end.
"""

import os
from collections.abc import Iterator
from typing import Any

import jax
import jaxtyping
import pytest
import torch

from vit_flax.models import attention_backend

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _attention() -> Iterator[None]:
    with attention_backend(os.environ.get("VIT_FLAX_ATTENTION", "auto")):
        yield


@pytest.fixture(autouse=True, scope="module")
def _annotations_unchecked() -> Iterator[None]:
    """Annotations are checked in the tests beside the code; here it would take an eighth of the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture
def _float32() -> Iterator[None]:
    """A test without 64-bit mode, as a training run has it."""
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", True)


@pytest.fixture
def _resized_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """SigLIP 2's cast to float32 before the resize leaves float64 as it is: the rule is judged, not its rounding."""
    to: Any = torch.Tensor.to

    def same(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        asked = args[0] if args else kwargs.get("dtype")
        return self if asked is torch.float32 and self.dtype is torch.float64 else to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", same)
