"""Deliberate errors in a small transformers model of random weights; each must be caught, as in `mutations`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING
from unittest import mock

import jax
import numpy as np

from vit_flax.parity.wrong_tensors import Tensors, Wrong

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class SmallMutation:
    """One deliberate error, and the row that must disagree first."""

    name: str
    description: str
    case: str  # of the model that it breaks: `vit_flax.parity.towers.KINDS`, `trunks.KINDS`
    first: str  # the row that must disagree first
    wrong: Wrong | None = None
    section: str = "components"  # of the report
    patches: tuple[tuple[object, str, object], ...] = ()  # (object, attribute, wrong value) of the Flax side

    def of(self, tensors: Tensors, told: Mapping[str, object]) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """Returns the wrong tensors and the wrong arguments of their conversion."""
        if callable(self.wrong):
            return self.wrong(tensors), {**told}
        return {**tensors}, {**told, **(self.wrong or {})}

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Patches the Flax side while the context lasts."""
        if not self.patches:
            yield
            return
        jax.clear_caches()  # what was traced before must not be used again, now or afterwards
        with contextlib.ExitStack() as stack:
            for target, attribute, value in self.patches:
                stack.enter_context(mock.patch.object(target, attribute, value))
            yield
        jax.clear_caches()


def draw_parameters(module: torch.nn.Module, seed: int = 0) -> None:
    """Draws a module's parameters at random: norm scales around 1, all others around 0."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(0.2 * drawn + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
