"""Hugging Face's models at other resolutions than their own, against transformers' interpolate_pos_encoding."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

import vit_flax
from parity_tests.agreement import assert_agrees, assert_differs, run_flax
from parity_tests.peers import import_transformers
from parity_tests.random_weights import random_images, randomise
from vit_flax.parity.tolerances import ANOTHER_DEFINITION

transformers = import_transformers()

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
SIZES = {**SHAPE, "intermediate_size": 24}
KINDS = {
    "ViTModel": SIZES,
    "DeiTModel": SIZES,
    "ViTMAEModel": {**SIZES, "mask_ratio": 0.0},
    "IJepaModel": SIZES,
    "Dinov2Model": SHAPE,
    "Dinov2WithRegistersModel": SHAPE,
    "CLIPVisionModel": SIZES,
    "SiglipVisionModel": SIZES,
}
# native, larger, smaller, not square, and not square with as many patches
IMAGES = {"native": (32, 32), "larger": (56, 56), "smaller": (16, 16), "not square": (24, 40), "as many": (16, 64)}


@pytest.fixture(autouse=True)
def _float64(monkeypatch):
    """Removes casts of float64 to float32 before a resize: transformers' rule is judged, not its rounding."""
    to = torch.Tensor.to

    def same(self, *args, **kwargs):
        asked = args[0] if args else kwargs.get("dtype")
        return self if asked is torch.float32 and self.dtype is torch.float64 else to(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", same)


@pytest.mark.parametrize("kind", KINDS)
def test_another_image_size(kind, tmp_path):
    model_class = getattr(transformers, kind)
    theirs = randomise(model_class(model_class.config_class(**KINDS[kind])))
    theirs.save_pretrained(tmp_path)
    size, images, expected = (0, 0), np.zeros(0), torch.zeros(0)
    for size in IMAGES.values():
        images = random_images(size)
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        patches = size[0] * size[1] // 64
        more: dict[str, Any] = {"noise": torch.arange(patches).double().expand(2, -1)} if "MAE" in kind else {}
        if "interpolate_pos_encoding" in str(inspect.signature(model_class.forward)) or "MAE" in kind:
            more["interpolate_pos_encoding"] = True
        with torch.no_grad():
            expected = theirs(pixels, **more).last_hidden_state
        model, params = vit_flax.load(tmp_path, image_size=size)
        assert_agrees(run_flax(model, params, images, "features"), expected)
    mode = "bilinear" if "Registers" not in kind else "bicubic"
    model, params = vit_flax.load(tmp_path, image_size=size, resample=mode)
    assert_differs(run_flax(model, params, images, "features"), expected, ANOTHER_DEFINITION)
