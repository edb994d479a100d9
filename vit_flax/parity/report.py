"""The result of a comparison: rows by section, losses, checks, and the data of the figures."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
from typing import Any

from vit_flax.parity.compare import Row, first_divergence

# In the order in which the first divergence is looked for.
SECTIONS = {
    "components": "Outputs of the components, in execution order",
    "intermediates": "Intermediate features and attention weights of every block",
    "stressed": "Outputs of the components, with activations of a large mean",
    "gradients": "Gradients of the image and of every parameter",
    "steps": "Losses and parameters after the optimiser steps",
    "outputs": "Tokens after the final norm, and the model's outputs",
}


@dataclasses.dataclass(frozen=True)
class Check:
    """One statement that holds or does not."""

    text: str
    agrees: bool


@dataclasses.dataclass
class Report:
    """Everything that `vit-flax compare` prints, writes as JSON and draws."""

    title: str
    config: dict[str, Any]
    sections: dict[str, list[Row]] = dataclasses.field(default_factory=dict)
    torch_losses: list[float] = dataclasses.field(default_factory=list)
    flax_losses: list[float] = dataclasses.field(default_factory=list)
    checks: list[Check] = dataclasses.field(default_factory=list)
    worked_example: list[Check] = dataclasses.field(default_factory=list)
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)  # JSON types only
    mutation: str | None = None
    seconds: float = 0.0
    versions: dict[str, str] = dataclasses.field(default_factory=lambda: library_versions())

    @property
    def first_divergence(self) -> tuple[str, str] | None:
        """Section and name of the first row that disagrees, or None."""
        for section in SECTIONS:
            name = first_divergence(self.sections.get(section, []))
            if name is not None:
                return section, name
        return None

    @property
    def agrees(self) -> bool:
        """Whether every row and check agrees, and there is at least one row."""
        rows = [row for section in self.sections.values() for row in section]
        return bool(rows) and all(x.agrees for x in (*rows, *self.checks, *self.worked_example))

    def to_dict(self) -> dict[str, object]:
        """Returns the report as JSON types; numbers that are not finite become strings."""
        first = self.first_divergence
        return _finite(
            {
                **dataclasses.asdict(self),
                "agrees": self.agrees,
                "first_divergence": first and {"section": first[0], "component": first[1]},
            }
        )

    def to_json(self) -> str:
        """Returns `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)


def library_versions() -> dict[str, str]:
    """Returns the versions of Python and of the compared libraries, and the processor's architecture."""
    from importlib import metadata

    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("vit-linen", "torch", "jax", "jaxlib", "flax", "optax", "numpy", "timm", "transformers"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value
