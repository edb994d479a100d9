"""Every timm entry point of a plain ViT, converted, compared in float64, and converted back."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import vit_flax
from parity_tests.peers import import_timm
from parity_tests.random_weights import in_float64, random_images, randomise, relative_error
from vit_flax.parity.tolerances import FLOAT64_RELATIVE
from vit_flax.presets import REFUSED, get_preset

timm = import_timm()

MODULES = ("vision_transformer", "deit", "eva", "beit", "vision_transformer_sam")
NAMES = [name for module in MODULES for name in timm.list_models(module=module) if name not in REFUSED]
FAST = (
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "deit3_small_patch16_224", "test_vit3", "test_vit4",
    "vit_wee_patch16_reg1_gap_256", "vit_xsmall_patch16_clip_224", "vit_base_patch32_clip_quickgelu_224",
    "vit_base_patch16_siglip_gap_224", "vit_small_patch14_reg4_dinov2", "vit_small_patch14_dinov2",
    "vit_medium_patch16_gap_240", "vit_betwixt_patch16_reg4_gap_256", "flexivit_small", "beit3_base_patch16_224",
    "eva02_tiny_patch14_224", "vit_pe_core_tiny_patch16_384", "vit_pe_spatial_tiny_patch16_512",
    "vit_small_patch16_rope_mixed_ape_224", "vit_small_plus_patch16_dinov3", "vit_tiny_patch16_dinov3_qkvb",
    "beit_base_patch16_224",
)  # fmt: skip
SMALL = {"embed_dim": 32, "num_heads": 4}  # instead of the true width, in tests of what does not depend on it


def build(name: str, **changes: Any) -> tuple[Any, dict[str, Any]]:
    """Returns timm's model at depth 2 on a small image, and the overrides that give our preset the same shape."""
    config = get_preset(name).config
    height, width = (3 * config.patch_size[0], 2 * config.patch_size[1])
    overrides = {"depth": 2, "num_classes": 7 if config.num_classes else 0, **changes}
    return in_float64(randomise(timm.create_model(name, img_size=(height, width), **overrides))), {
        **overrides,
        "image_size": (height, width),
    }


def outputs(torch_model: Any, model: Any, params: Any) -> tuple[np.ndarray, np.ndarray]:
    images = random_images(model.config.image_size)
    with torch.no_grad():
        theirs = torch_model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    return np.asarray(jax.jit(model.apply)({"params": params}, jnp.asarray(images))), theirs


def check(name: str, **changes: Any) -> None:
    torch_model, overrides = build(name, **changes)
    tensors = torch_model.state_dict()
    model, params = vit_flax.from_state_dict(tensors, config=name, **overrides)
    ours, theirs = outputs(torch_model, model, params)
    assert relative_error(ours, theirs) < FLOAT64_RELATIVE

    back = vit_flax.to_state_dict(model, params)
    assert set(back) == set(tensors)
    assert all(np.array_equal(back[key], tensors[key].numpy()) for key in back)
    torch_model.load_state_dict({key: torch.tensor(array) for key, array in back.items()}, strict=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in FAST])
def test_every_entry_point(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", FAST)
def test_representative_entry_points(name: str) -> None:
    check(name)
