"""Checkpoints loaded for another image size, against the libraries' own resizing."""

from typing import Any

import pytest
import torch

import vit_flax
from parity_tests.agreement import assert_agrees, assert_differs, run_flax, run_torch
from parity_tests.peers import import_timm, import_torchvision
from parity_tests.random_weights import in_float64, random_images, randomise, relative_error
from vit_flax.parity.tolerances import ANOTHER_DEFINITION

SIZES = [(32, 32), (80, 80), (24, 56)]  # of models made for 48 pixels and patches of 8


@pytest.fixture(autouse=True)
def _float64(monkeypatch):
    """Makes the libraries' casts to float32 casts to float64: their rule is judged, not their rounding."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {}),
        ("vit_base_patch16_reg4_gap_256", {"embed_dim": 48, "num_heads": 4}),  # positions for patches alone
        ("deit_tiny_distilled_patch16_224", {}),  # two prefix tokens
        ("vit_base_patch16_siglip_224", {"embed_dim": 48, "num_heads": 4, "mlp_ratio": 2}),  # none
        ("vit_small_patch14_reg4_dinov2", {}),
        ("eva02_tiny_patch14_224", {}),  # its rotations are stretched as well
    ],
)
def test_timm(name, arguments, size):
    timm: Any = import_timm()
    module = randomise(timm.create_model(name, depth=2, img_size=48, patch_size=8, **arguments))
    state = {key: value.clone() for key, value in module.state_dict().items()}
    module.set_input_size(size)
    in_float64(module)
    native = {"depth": 2, "image_size": 48, "patch_size": 8, "num_classes": module.num_classes}
    config = vit_flax.create_model(name, **native, **arguments).config
    layout = "eva" if name.startswith("eva") else "timm"  # DeiT's own repository resizes otherwise
    model, params = vit_flax.from_state_dict(state, layout, config, image_size=size)
    images = random_images(size)
    expected = run_torch(module, images)
    assert_agrees(run_flax(model, params, images), expected)
    model, params = vit_flax.from_state_dict(state, layout, config, image_size=size, resample="bicubic")
    assert_differs(run_flax(model, params, images), expected, ANOTHER_DEFINITION)


@pytest.mark.parametrize("side", [32, 80, 56])
def test_torchvision(side):
    models: Any = import_torchvision().models
    shape = {"patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 3}
    module = randomise(models.VisionTransformer(image_size=48, **shape))
    other = randomise(models.VisionTransformer(image_size=side, **shape))
    state = module.state_dict()
    other.load_state_dict(models.vision_transformer.interpolate_embeddings(side, 8, dict(state)))
    model, params = vit_flax.from_state_dict(state, num_heads=2, patch_size=8, in_chans=3, image_size=(side, side))
    images = random_images((side, side))
    assert_agrees(run_flax(model, params, images), run_torch(other, images))


@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_resizes_in_its_two_ways(registers):
    timm: Any = import_timm()
    name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    module = randomise(timm.create_model(name, depth=1, img_size=42))
    config = vit_flax.create_model(name, depth=1, image_size=42).config
    plain, params = vit_flax.from_state_dict(module.state_dict(), "timm", config)
    config = config.replace(mask_token=True, no_embed_class=False, no_embed_reg=registers > 0)
    state = vit_flax.to_state_dict(plain, params, "timm")
    state["mask_token"] = state["cls_token"][0]
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = state["pos_embed"][:, :1].repeat(10, 1)
    mode = "bicubic_antialias" if registers else "bicubic_offset"
    sized = {"config": config, "image_size": (56, 70)}
    _, resized = vit_flax.from_state_dict(state, "dinov2", **sized)
    _, expected = vit_flax.from_state_dict(state, "dinov2", **sized, resample=mode)
    assert relative_error(resized["pos_embed"], expected["pos_embed"]) == 0


@pytest.mark.parametrize("patch", [12, 4, (8, 16)])
def test_another_patch_size_as_timm_resizes_flexivit(patch, monkeypatch):
    timm: Any = import_timm()
    layer = timm.layers.patch_embed
    monkeypatch.setattr(layer, "DTYPE_INTERMEDIATE", torch.float64)
    for function in (layer._compute_resize_matrix, layer._apply_resampling):
        monkeypatch.setattr(function, "__defaults__", (torch.float64,))
    sizes = {"embed_dim": 32, "num_heads": 4, "depth": 2}
    module = randomise(timm.create_model("flexivit_small", img_size=48, patch_size=8, **sizes))
    state = {key: value.clone() for key, value in module.state_dict().items()}
    other = timm.create_model("flexivit_small", img_size=48, patch_size=patch, **sizes).double().eval()
    other.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(dict(state), other))
    config = vit_flax.create_model("flexivit_small", image_size=48, patch_size=8, **sizes).config
    model, params = vit_flax.from_state_dict(state, "timm", config, patch_size=patch)
    images = random_images((48, 48))
    expected = run_torch(other, images)
    assert_agrees(run_flax(model, params, images), expected)
    model, params = vit_flax.from_state_dict(state, "timm", config, patch_size=patch, resample="bilinear")
    assert_differs(run_flax(model, params, images), expected, ANOTHER_DEFINITION)
