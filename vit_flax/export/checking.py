"""Compares an exported program's outputs with its model's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from vit_flax.export.program import Program
from vit_flax.parity.tolerances import float32_allowed

_IMAGES = 3


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The 2-norms of one output and of its difference from the model in float64."""

    error: float  # 2-norm of the difference, the larger of two batch sizes
    allowed: float  # bound by `vit_flax.parity.tolerances`, from the model's own error in the same dtype
    size: float  # 2-norm of the output

    @property
    def agrees(self) -> bool:
        """Whether the error is within the allowed one."""
        return self.error <= self.allowed  # False for NaN

    def __str__(self) -> str:
        """Describes the comparison."""
        return f"off by {self.error:.1e} of {self.size:.1e}, {self.allowed:.1e} allowed"


def compare(program: Program, run: Callable[[np.ndarray], list[np.ndarray]]) -> list[Comparison]:
    """Compares a program, run by `run`, with its model on random images, at two batch sizes."""
    rng = np.random.default_rng(0)
    shape = (_IMAGES, *program.image_shape)
    if program.raw_size is None:
        given = prepared = rng.normal(size=shape).astype(np.float32)
    else:
        assert program.preprocessing is not None
        given = rng.integers(0, 256, shape).astype(np.uint8)
        prepared = np.stack([program.preprocessing(image) for image in given])
    found = run(given)
    alone = run(given[:1])
    exact, own = program.exact(prepared), program.model_own(prepared)
    largest = max(float(np.linalg.norm(array)) for array in exact)
    comparisons = []
    for result, single, wide, narrow in zip(found, alone, exact, own, strict=True):
        if result.shape != wide.shape or single.shape != wide[:1].shape:
            comparisons.append(Comparison(np.inf, 0.0, float(np.linalg.norm(wide))))
            continue
        size = float(np.linalg.norm(wide))
        allowed = float32_allowed(float(np.linalg.norm(narrow - wide)), size, largest)
        error = max(float(np.linalg.norm(result - wide)), float(np.linalg.norm(single - wide[:1])))
        comparisons.append(Comparison(error, allowed, size))
    return comparisons
