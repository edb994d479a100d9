"""A model of another library with a checkpoint's weights, and its comparison with the same model in Flax."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import PyTree

from vit_flax.config import ViTConfig
from vit_flax.convert import Layout
from vit_flax.parity.compare import compare_components, subject_of
from vit_flax.parity.float64 import computed_in_float64
from vit_flax.parity.inputs import DrawnImages
from vit_flax.parity.outputs import Outputs, compare_outputs
from vit_flax.parity.report import Check, Report

if TYPE_CHECKING:
    import torch

    from vit_flax.models import VisionTransformer

OUTPUTS = {"features": "method='features'", "output": "method='__call__'"}  # by name, the Flax call


@dataclasses.dataclass(frozen=True)
class Peer:
    """Another library's model with a checkpoint's weights."""

    title: str
    module: Any  # in float64 and evaluation mode; returns one tensor
    layout: Layout  # of the names of its modules
    outputs: Outputs
    checks: list[Check]


def compare_peer(peer: Peer, model: VisionTransformer, params: PyTree, images: DrawnImages, source: str) -> Report:
    """Compares components, tokens and output on the same images, in float64 and float32.

    Args:
        peer: the other library's model.
        model: ours.
        params: of ours.
        images: for both.
        source: what the report calls the weights.
    """
    start = time.monotonic()
    subject = subject_of(peer.module, model, params, peer.layout)
    padding = images.flax_arguments
    if padding:
        run = partial(_apply, model, padding)
        subject = dataclasses.replace(subject, function=run, to_flax=images.to_flax)
    report = Report(f"{source} against {peer.title}", model.config.to_dict(), checks=[*peer.checks])
    with computed_in_float64(peer.module) as kept:
        report.checks += left_in_float64(kept)
        report.sections["components"] = compare_components(subject, images.pixels)
        report.sections["outputs"] = compare_outputs(
            peer.outputs, peer.module, partial(_flax_outputs, model, padding), subject.params, images, OUTPUTS
        )
    report.seconds = time.monotonic() - start
    return report


def left_in_float64(kept: Iterable[str]) -> list[Check]:
    """Returns the check that names the parts computed in float64 here, which the other library casts to float32."""
    names = " and ".join(kept)
    return [Check(f"{names} of transformers cast to float32: left in float64 for this comparison", True)] * bool(names)


def every_tensor_has_a_place(missing: Iterable[str], unexpected: Iterable[str], library: str) -> list[Check]:
    """Returns the check that another library's model has no missing and no unexpected keys."""
    text = f"{library} finds a place for every tensor and a tensor for every parameter"
    wrong = [*(f"no {name}" for name in missing), *(f"nothing to do with {name}" for name in unexpected)]
    more = f": {', '.join(wrong[:5])}{' ...' if len(wrong) > 5 else ''}" if wrong else ""
    return [Check(text + more, not wrong)]


def tokens_of(features: torch.Tensor | None, config: ViTConfig) -> torch.Tensor | None:
    """Flattens feature maps (B, C, H, W) or (B, H, W, C), as trunks return them, to tokens (B, N, C)."""
    if features is None or features.ndim != 4:
        return features
    is_last = features.shape[1:] == (*config.feature_grid, config.feature_dim)
    return features.flatten(1, 2) if is_last else features.flatten(2).swapaxes(1, 2)


def _apply(model: Any, padding: Mapping[str, np.ndarray], params: PyTree, pixels: jax.Array) -> jax.Array:
    found: jax.Array = model.apply({"params": params}, pixels, **padding)
    return found


def _flax_outputs(
    model: Any, padding: Mapping[str, np.ndarray], params: PyTree, pixels: jax.Array
) -> dict[str, jax.Array]:
    call = partial(model.apply, {"params": params}, pixels, **padding)
    return {"features": call(method="features"), "output": call()}
