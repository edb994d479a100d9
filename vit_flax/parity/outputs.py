"""Compares the outputs of two whole models, in float64 and float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vit_flax.parity.compare import Row, compare_arrays
from vit_flax.parity.inputs import DrawnImages

if TYPE_CHECKING:
    import torch

Outputs = Callable[[Any, Any], Mapping[str, Any]]  # (module or parameters, pixels) -> outputs by name


def compare_outputs(
    run: Outputs,
    module: torch.nn.Module,
    compute: Outputs,
    params: PyTree,
    images: DrawnImages,
    names: Mapping[str, str],
) -> list[Row]:
    """Compares each named output that the torch module returns.

    Args:
        run: function of the module and NCHW pixels that returns its outputs by name.
        module: in float64; cast to float32 and back in place, so its weights are rounded to float32.
        compute: likewise of the Flax parameters and pixels; jitted here.
        params: parameters of the Flax model, in float64.
        images: inputs of both.
        names: outputs to compare, and the names of their Flax counterparts in the report.
    """
    import torch

    pixels = torch.from_numpy(images.pixels)
    with torch.no_grad():
        torch64 = run(module, pixels)
        torch32 = run(module.float(), pixels.float())
        module.double()
    there = {name: told for name, told in names.items() if name in torch64}

    @jax.jit
    def wanted(params: PyTree, pixels: jax.Array) -> dict[str, Any]:
        found = compute(params, pixels)
        return {name: found[name] for name in there}

    def compute_in(dtype: Any) -> dict[str, np.ndarray]:
        narrow = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        found = wanted(narrow, jnp.asarray(images.to_flax(images.pixels), dtype))
        return {name: np.asarray(array, np.float64) for name, array in found.items()}

    flax64, flax32 = compute_in(jnp.float64), compute_in(jnp.float32)
    rows = []
    for name, told in there.items():
        theirs64, theirs32 = (found[name].double().numpy() for found in (torch64, torch32))
        rows.append(compare_arrays(name, told, theirs64, flax64[name], theirs32, flax32[name]))
    return rows
