"""What the parity tests share: random weights, and assertions on rows of a comparison."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from vit_flax import from_state_dict
from vit_flax.convert import get_layout
from vit_flax.parity import Row, Subject, subject_of


def randomize(module: nn.Module, std: float = 0.2) -> nn.Module:
    """Draws every trained parameter from a normal distribution, so that no part of the model is the identity."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=std)
    return module.double().eval()


def converted(module: nn.Module, layout: str, **overrides: Any) -> tuple[Subject, Any]:
    """Returns the Subject of a torch model with random weights, and its Flax model."""
    randomize(module)
    model, params = from_state_dict(module.state_dict(), layout, **overrides)
    return subject_of(module, model, params, get_layout(layout)), model


def assert_agree(rows: Iterable[Row]) -> None:
    """Fails with every row that disagrees; an empty comparison fails too."""
    rows = list(rows)
    assert rows, "nothing was compared"
    wrong = [row for row in rows if not row.agrees]
    assert not wrong, "\n".join(map(str, wrong))
