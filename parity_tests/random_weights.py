"""Random weights for torch models, large enough that every parameter affects the output."""

from __future__ import annotations

from types import MethodType
from typing import Any
from unittest import mock

import numpy as np


def randomise(module: Any, seed: int = 0, std: float = 0.2) -> Any:
    """Returns the torch module in eval mode and float64, every parameter drawn anew.

    Norm scales are drawn around 1; weights of a Linear or convolution are scaled down by its width, so that activations
    keep their size in wide models.
    """
    import torch

    module = module.double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).double()
            fan_in = int(np.prod(parameter.shape[1:])) if parameter.ndim in (2, 4) else 1
            gain = "norm" in name and name.endswith("weight") and parameter.ndim == 1
            parameter.copy_(drawn * min(std, 3 * std * fan_in**-0.5 * 4 if fan_in > 1 else std) + gain)
    return module


def random_images(size: tuple[int, int], chans: int = 3, batch: int = 2, seed: int = 1) -> np.ndarray:
    """Returns images (B, H, W, C) in float64."""
    return np.random.default_rng(seed).standard_normal((batch, *size, chans))


def relative_error(ours: Any, theirs: Any) -> float:
    """Returns the norm of the difference over the norm of `theirs`; infinite when shapes differ."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        return float("inf")
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def in_float64(torch_model: Any) -> Any:
    """Returns a timm model without timm's casts to float32 in models of any precision.

    These are the weight of differential attention, and the angles of rotary embeddings with their sines and cosines.
    """
    for module in torch_model.modules():
        if hasattr(module, "lambda_q1"):
            module._compute_lambda = MethodType(_lambda, module)
        if hasattr(module, "bands"):
            bands = module._compute_bands().double()
            module.pos_embed = module._build_embed_cat(module.feat_shape, bands, dtype=bands.dtype)
        if hasattr(module, "freqs"):
            module.get_embed = MethodType(_mixed, module)
        if hasattr(module, "periods"):
            module.periods = (1 / module._compute_periods()).double() ** -1
            module._get_pos_embed_from_coords = MethodType(_turned, module)
            if module.pos_embed_cached is not None:
                module.pos_embed_cached = module._create_embed(module.feat_shape)
    return torch_model


def _mixed(self: Any, *arguments: Any) -> Any:
    import torch

    with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
        return type(self).get_embed(self, *arguments)


def _turned(self: Any, coordinates: Any) -> Any:
    # transformers and DINOv3 itself round full turns and the inverse of periods to float32; timm in double does not
    turns = 2 * np.pi * coordinates
    return type(self)._get_pos_embed_from_coords(self, turns.double() / (2 * np.pi))


def _lambda(self: Any) -> Any:
    first, second = (self.lambda_q1 * self.lambda_k1).sum().exp(), (self.lambda_q2 * self.lambda_k2).sum().exp()
    return first - second + self.lambda_init
