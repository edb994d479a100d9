"""Compares a torch module with a Flax function: components, gradients; float64 first, float32 with a derived bound."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from vit_flax.convert import Drop, Layout
from vit_flax.convert.rules import match_template
from vit_flax.parity.record import INPUT, record_flax, record_torch
from vit_flax.parity.tolerances import float32_allowed, float64_allowed
from vit_flax.pretrained import to_state_dict

if TYPE_CHECKING:
    import torch

    from vit_flax.models import VisionTransformer

Pairs = Iterable[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Row:
    """Differences of one array between the frameworks; relative ones are 2-norms over that of torch's float64 array."""

    name: str  # torch's name
    flax_name: str
    shape: tuple[int, ...]  # of the Flax array
    max_difference: float  # float64, largest absolute difference
    relative_difference: float  # float64
    torch_float32_error: float | None  # None where only float64 was compared
    flax_float32_error: float | None
    agrees: bool


@dataclasses.dataclass(frozen=True)
class Subject:
    """A pair of models under comparison: a torch module and a Flax function with its parameters.

    `function(params, images)` takes images in the layout of `to_flax`. `export` maps a pytree like `params` to the
    names of torch's state_dict; without it gradients of parameters and optimiser steps are not compared.
    """

    torch_module: torch.nn.Module
    function: Callable[[PyTree, jax.Array], jax.Array]
    params: PyTree  # float64
    pairs: tuple[tuple[str, str], ...]  # torch component, Flax component
    export: Callable[[PyTree], Mapping[str, np.ndarray]] | None = None
    to_flax: Callable[[np.ndarray], np.ndarray] = lambda images: images.transpose(0, 2, 3, 1)  # NCHW -> NHWC
    from_flax: Callable[[np.ndarray], np.ndarray] = lambda images: images.transpose(0, 3, 1, 2)  # for image gradients


def expand_pairs(templates: Pairs, torch_module: torch.nn.Module) -> tuple[tuple[str, str], ...]:
    """Returns the pairs of component names that a layout's templates stand for in a torch module."""
    pairs = []
    for name in dict(torch_module.named_modules()):
        for torch_template, flax_template in templates:
            bindings = match_template(torch_template.removesuffix(INPUT), name)
            if bindings is not None:
                suffix = INPUT if torch_template.endswith(INPUT) else ""
                pairs.append((name + suffix, flax_template.format(**bindings)))
    return tuple(pairs)


def subject_of(torch_module: torch.nn.Module, model: VisionTransformer, params: PyTree, layout: Layout) -> Subject:
    """Returns the Subject of a torch module, cast to float64 in place, and the Flax model converted from it."""
    constants = {rule.source for rule in layout.rules(model.config) if isinstance(rule, Drop)}

    def export(tree: PyTree) -> dict[str, np.ndarray]:  # without the layout's constants, which have no gradient
        tensors = to_state_dict(model, tree, layout.name)
        names = layout.renamed(tensors)
        return {name: array for name, array in tensors.items() if names[name] not in constants}

    def forward(params: PyTree, images: jax.Array) -> jax.Array:
        return cast(jax.Array, model.apply({"params": params}, images))

    return Subject(
        torch_module.double(),
        forward,
        jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), params),
        expand_pairs(layout.components(model.config), torch_module),
        export,
    )


def compare_components(subject: Subject, images: np.ndarray) -> list[Row]:
    """Compares the output of every paired component for `images` (B, C, H, W), in execution order.

    Raises:
        ValueError: JAX is in 32-bit mode, or a paired component does not exist or was never called.
    """
    require_x64()
    import torch

    torch_names, flax_names = zip(*subject.pairs, strict=True)

    def torch_run(dtype: Any) -> dict[str, np.ndarray]:
        module = copy.deepcopy(subject.torch_module).to(dtype)
        with torch.no_grad():
            return record_torch(module, torch.from_numpy(images).to(dtype), torch_names)[1]

    def flax_run(dtype: Any) -> dict[str, np.ndarray]:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), subject.params)
        return record_flax(subject.function, params, jnp.asarray(subject.to_flax(images), dtype), flax_names)[1]

    torch64, torch32 = torch_run(torch.float64), torch_run(torch.float32)
    flax64, flax32 = flax_run(jnp.float64), flax_run(jnp.float32)
    partner = dict(subject.pairs)
    return [
        compare_arrays(name, partner[name], torch64[name], flax64[partner[name]], torch32[name], flax32[partner[name]])
        for name in torch64
    ]


def compare_gradients(subject: Subject, images: np.ndarray, seed: int = 0) -> list[Row]:
    """Compares the gradients of the image and of every parameter, for a random cotangent of the output.

    Raises:
        ValueError: JAX is in 32-bit mode.
    """
    require_x64()
    torch64, torch32 = (_torch_gradients(subject, images, bits, seed) for bits in (64, 32))
    flax64, flax32 = (_flax_gradients(subject, images, bits, seed) for bits in (64, 32))
    largest = max(float(np.linalg.norm(g)) for g in torch64.values())
    if subject.export is None:
        image = [gradients["image"] for gradients in (torch64, flax64, torch32, flax32)]
        return [compare_arrays("image", "image", image[0], image[1], image[2], image[3])]
    return [
        compare_arrays(name, name, torch64[name], flax64[name], torch32[name], flax32[name], largest)
        if name in flax64
        else _not_exported(name, torch64[name])
        for name in torch64
    ]


def _not_exported(name: str, gradient: np.ndarray) -> Row:
    """Returns the row of a parameter that only torch has; it agrees where torch's gradient is zero."""
    largest = float(np.abs(gradient).max(initial=0.0))
    return Row(name, "(none)", (), largest, float(largest > 0), None, None, largest == 0)


def _cotangent(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def _torch_gradients(subject: Subject, images: np.ndarray, bits: int, seed: int) -> dict[str, np.ndarray]:
    import torch

    dtype = {64: torch.float64, 32: torch.float32}[bits]
    module = copy.deepcopy(subject.torch_module).to(dtype)
    inputs = torch.from_numpy(images).to(dtype).requires_grad_()
    out = module(inputs)
    out.backward(torch.from_numpy(_cotangent(tuple(out.shape), seed)).to(dtype))
    # the gradient of a parameter that torch does not train (a fixed position table) must be zero in Flax too
    by_params = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in module.named_parameters()}
    return {name: g.double().numpy() for name, g in {"image": inputs.grad, **by_params}.items() if g is not None}


def _flax_gradients(subject: Subject, images: np.ndarray, bits: int, seed: int) -> dict[str, np.ndarray]:
    dtype = {64: jnp.float64, 32: jnp.float32}[bits]
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), subject.params)
    inputs = jnp.asarray(subject.to_flax(images), dtype)

    def pull(params: PyTree, inputs: Any) -> Any:
        out, vjp = jax.vjp(subject.function, params, inputs)
        return vjp(jnp.asarray(_cotangent(out.shape, seed), out.dtype))

    by_params, by_images = jax.jit(pull)(params, inputs)
    gradients = {"image": subject.from_flax(np.asarray(by_images))}
    if subject.export is not None:
        gradients |= subject.export(by_params)
    return {name: np.asarray(g, np.float64) for name, g in gradients.items()}


def compare_arrays(
    name: str,
    flax_name: str,
    torch64: np.ndarray,
    flax64: np.ndarray,
    torch32: np.ndarray | None = None,
    flax32: np.ndarray | None = None,
    largest_norm: float = 0.0,
) -> Row:
    """Compares two corresponding arrays in float64, and both float32 versions against torch's float64.

    Args:
        name: torch's name.
        flax_name: the Flax name.
        torch64: the reference.
        flax64: the Flax float64 result; another shape disagrees.
        torch32: torch's float32 result; None: float64 alone decides.
        flax32: the Flax float32 result, likewise.
        largest_norm: largest 2-norm of the arrays of the same kind; its rounding is allowed on top, for gradients that
            are zero in exact arithmetic.
    """
    torch64 = _as_tokens(torch64, flax64)
    torch32 = None if torch32 is None else _as_tokens(torch32, flax64)
    if torch64.shape != flax64.shape:
        return Row(name, flax_name, flax64.shape, np.inf, np.inf, None, None, False)
    norm = float(np.linalg.norm(torch64))
    scale = norm or 1.0
    difference = np.abs(flax64 - torch64)
    distance = float(np.linalg.norm(difference))
    # NaN compares false, so it counts as a difference
    agrees = bool(distance <= float64_allowed(norm, largest_norm))
    errors: tuple[float | None, float | None] = (None, None)
    if torch32 is not None and flax32 is not None:
        torch_error, flax_error = (float(np.linalg.norm(a - torch64)) for a in (torch32, flax32))
        agrees = agrees and bool(flax_error <= float32_allowed(torch_error, norm, largest_norm))
        errors = (torch_error / scale, flax_error / scale)
    largest = float(difference.max()) if difference.size else 0.0
    return Row(name, flax_name, flax64.shape, largest, distance / scale, *errors, agrees)


def _as_tokens(torch_array: np.ndarray, flax_array: np.ndarray) -> np.ndarray:
    """Flattens torch's grid of tokens (B, H, W, D) to (B, H W, D) where the Flax array has that shape."""
    if torch_array.ndim != 4:
        return torch_array
    batch, height, width, chans = torch_array.shape
    tokens = (batch, height * width, chans)
    return torch_array.reshape(tokens) if flax_array.shape == tokens else torch_array


def first_divergence(rows: Iterable[Row]) -> str | None:
    """Returns the name of the first row that disagrees."""
    return next((row.name for row in rows if not row.agrees), None)


def require_x64() -> None:
    """Raises ValueError unless JAX computes in float64."""
    if not jax.config.jax_enable_x64:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError("parity is decided in float64: call jax.config.update('jax_enable_x64', True) first")
