"""Writes a model's parameters in a layout."""

from __future__ import annotations

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import PyTree

from vit_flax.convert import ConversionError
from vit_flax.models import TwoTowers, VisionTransformer
from vit_flax.models.shapes import expected_shapes

_SHOWN = 50


def flat_params(model: VisionTransformer | TwoTowers, params: PyTree) -> dict[str, PyTree]:
    """Returns the parameters by path.

    Raises:
        ConversionError: the parameters are not the model's; the message lists those missing, unexpected or misshapen.
    """
    flat: dict[str, PyTree] = flatten_dict(params, sep="/")  # pyright: ignore[reportAssignmentType]
    expected = expected_shapes(model)
    problems = [f"missing: {path}" for path in expected if path not in flat]
    problems += [f"unexpected: {path}" for path in flat if path not in expected]
    problems += [
        f"misshapen: {path} is {np.shape(flat[path])}, the model needs {shape}"
        for path, shape in expected.items()
        if path in flat and tuple(np.shape(flat[path])) != shape
    ]
    if problems:
        raise ConversionError("\n  ".join(["these parameters are not the model's:", *problems[:_SHOWN]]))
    return flat
