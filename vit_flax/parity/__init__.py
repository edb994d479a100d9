"""Proof that a torch module and a Flax function are the same model, as a tool and as an API.

Needs torch (and optax for optimiser steps): pip install 'vit-linen[torch]'. To compare your own models, describe them
with a `Subject` and call `compare_components`, `compare_gradients` and `compare_steps`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_flax.parity.compare import (
        Row,
        Subject,
        compare_arrays,
        compare_components,
        compare_gradients,
        expand_pairs,
        first_divergence,
        subject_of,
    )
    from vit_flax.parity.record import record_flax, record_torch
    from vit_flax.parity.report import Check, Report
    from vit_flax.parity.steps import AdamW, Steps, compare_steps

__all__ = [
    "AdamW",
    "Check",
    "Report",
    "Row",
    "Steps",
    "Subject",
    "compare_arrays",
    "compare_components",
    "compare_gradients",
    "compare_steps",
    "expand_pairs",
    "first_divergence",
    "record_flax",
    "record_torch",
    "subject_of",
]

# lazy imports, so that `vit_flax.parity.tolerances` loads without torch
_MODULES = {
    "vit_flax.parity.compare": (
        "Row",
        "Subject",
        "compare_arrays",
        "compare_components",
        "compare_gradients",
        "expand_pairs",
        "first_divergence",
        "subject_of",
    ),
    "vit_flax.parity.record": ("record_flax", "record_torch"),
    "vit_flax.parity.report": ("Check", "Report"),
    "vit_flax.parity.steps": ("AdamW", "Steps", "compare_steps"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'vit_flax.parity' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
