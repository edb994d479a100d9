"""The lucidrains and simple_vit layouts against vit_pytorch.ViT and vit_pytorch.SimpleViT."""

from typing import Any

import numpy as np
import pytest
import torch

import vit_flax
import vit_flax.models
from parity_tests.agreement import (
    assert_agrees,
    assert_components_agree,
    assert_differs,
    assert_same_tensors,
    load_strictly,
    run_flax,
    run_torch,
    wrongly_converted,
)
from parity_tests.peers import import_vit_pytorch
from parity_tests.random_weights import random_images, randomise
from vit_flax.parity.wrong_tensors import changed, exchanged, thirds_swapped, transposed_patches

SimpleViT, ViT = import_vit_pytorch().SimpleViT, import_vit_pytorch().ViT

SHAPE = {"dim": 32, "depth": 2, "heads": 3, "dim_head": 8, "mlp_dim": 72, "num_classes": 5}
VIT_CASES = {
    "class token": {"image_size": 16, "patch_size": 4},
    "mean": {"image_size": 16, "patch_size": 4, "pool": "mean"},
    "not square": {"image_size": (12, 24), "patch_size": (3, 4), "channels": 2},
    "no projection": {"image_size": 16, "patch_size": 8, "heads": 1, "dim_head": 32},
    "one wide head": {"image_size": 16, "patch_size": 8, "heads": 1, "dim_head": 40},
    "no head": {"image_size": 16, "patch_size": 8, "num_classes": 0},
}
SIMPLE_CASES = {
    "square": {"image_size": 16, "patch_size": 4},
    "not square": {"image_size": (12, 24), "patch_size": (3, 4), "channels": 2},
    "one head of the whole width": {"image_size": 16, "patch_size": 8, "heads": 1, "dim_head": 32},
}


def build(constructor, **case):
    # float64 while it is built: SimpleViT's table is then rounded once, at the end, as ours is
    torch.set_default_dtype(torch.float64)
    try:
        return randomise(constructor(**{**SHAPE, **case}))
    finally:
        torch.set_default_dtype(torch.float32)


def told(case):
    """Returns the fields that the tensors do not determine."""
    return {
        "num_heads": case.get("heads", SHAPE["heads"]),
        "image_size": case["image_size"],
        "patch_size": case["patch_size"],
    }


def images_for(case):
    size = case["image_size"]
    return random_images(size if isinstance(size, tuple) else (size, size), case.get("channels", 3))


def check(constructor, layout, case):
    theirs = build(constructor, **case)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **told(case))
    assert_agrees(run_flax(model, params, images_for(case)), run_torch(theirs, images_for(case)))
    back = vit_flax.to_state_dict(model, params, layout=layout)
    assert_same_tensors(back, theirs.state_dict())
    load_strictly(theirs, back)
    return model


@pytest.mark.parametrize("case", VIT_CASES)
def test_vit_agrees_in_float64_and_goes_back_bit_for_bit(case):
    check(ViT, "lucidrains", VIT_CASES[case])


@pytest.mark.parametrize("case", SIMPLE_CASES)
def test_simple_vit_agrees_in_float64_and_goes_back_bit_for_bit(case):
    check(SimpleViT, "simple_vit", SIMPLE_CASES[case])


@pytest.mark.parametrize(
    ("constructor", "layout", "case"),
    [(ViT, "lucidrains", VIT_CASES["not square"]), (SimpleViT, "simple_vit", SIMPLE_CASES["not square"])],
)
def test_every_component_and_gradient_agrees(constructor, layout, case):
    theirs = build(constructor, **case)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **told(case))
    assert_components_agree(theirs, model, params, layout, images_for(case))


@pytest.mark.parametrize(("height", "width", "dim"), [(14, 14, 384), (3, 7, 16), (1, 5, 8)])
def test_the_table_is_simple_vits_to_float32_rounding(height, width, dim):
    theirs = SimpleViT(image_size=(height, width), patch_size=1, num_classes=1, dim=dim, depth=1, heads=1, mlp_dim=4)
    ours = vit_flax.models.simple_sincos_2d((height, width), dim)[0]
    # they round the angle, up to the longer side, to float32 a few times before taking its sine
    bound = 4 * np.finfo(np.float32).eps * max(height, width)
    assert np.abs(ours - theirs.pos_embedding.numpy()).max() <= bound


def test_the_width_of_a_head_may_be_told_instead_of_their_number():
    case = VIT_CASES["class token"]
    theirs = build(ViT, **case)
    model, _ = vit_flax.from_state_dict(theirs.state_dict(), attn_head_dim=8, image_size=16, patch_size=4)
    config: Any = model.config
    assert (config.num_heads, config.attn_head_dim) == (3, 8)


def test_asks_for_what_the_tensors_do_not_tell():
    with pytest.raises(vit_flax.ConversionError, match="num_heads, image_size, patch_size"):
        vit_flax.from_state_dict(build(ViT, **VIT_CASES["class token"]).state_dict())


class TestOlderNamesAreRefusedByName:
    def test_norm_and_function_apart(self):
        tensors = build(ViT, **VIT_CASES["class token"]).state_dict()
        older = {name.replace(".0.to_qkv", ".0.fn.to_qkv"): tensor for name, tensor in tensors.items()}
        with pytest.raises(vit_flax.ConversionError, match=r"layers\.0\.0\.fn"):
            vit_flax.from_state_dict(older, **told(VIT_CASES["class token"]))

    def test_class_token_of_three_axes(self):
        tensors = build(ViT, **VIT_CASES["class token"]).state_dict()
        with pytest.raises(vit_flax.ConversionError, match="cls_token of three axes"):
            vit_flax.from_state_dict(
                {**tensors, "cls_token": tensors["cls_token"][None]}, **told(VIT_CASES["class token"])
            )


@pytest.mark.parametrize(
    ("field", "value"), [("value_skip", True), ("proj_bias", False), ("pos_embed", "none"), ("global_pool", "avg")]
)
def test_refuses_to_hold_or_to_be_what_vit_pytorch_cannot_compute(field, value):
    fields = {"image_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3, "attn_head_dim": 4}

    def hold():
        model = vit_flax.models.build_model(vit_flax.LucidrainsViTConfig(**{**fields, field: value}))
        vit_flax.to_state_dict(model, {}, layout="lucidrains")

    with pytest.raises(ValueError, match=field):
        hold()


SHARED_MUTATIONS = {
    "swapped q and k": thirds_swapped("to_qkv"),
    "swapped k and v": thirds_swapped("to_qkv", 1, 2),
    "wrong epsilon": {"norm_eps": 1e-6},
    "tanh for erf": {"activation": "gelu_tanh"},
    "wrong heads": {"num_heads": 6},
    "patches in the order of torch.nn.Unfold": changed("to_patch_embedding.2.weight", transposed_patches(4, 4, 3)),
    "patch norms left out": changed("to_patch_embedding.3.weight", np.ones_like),
    "norms exchanged": exchanged(".0.norm.", ".1.net.0."),
    "scale of the width": {"qk_scale": 32**-0.5},
}
MUTATIONS = {
    ViT: {
        **SHARED_MUTATIONS,
        "class token after the patches": changed("pos_embedding", lambda a: np.roll(a, 1, axis=0)),
        "mean of the patches": {"global_pool": "avg"},
    },
    SimpleViT: {
        **SHARED_MUTATIONS,
        "no positions": {"pos_embed": "none"},
    },
}


@pytest.mark.parametrize(
    ("constructor", "mutation"), [(constructor, name) for constructor, names in MUTATIONS.items() for name in names]
)
def test_a_wrong_conversion_is_seen(constructor, mutation):
    case = VIT_CASES["class token"]
    theirs = build(constructor, **case)
    tensors = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    change = MUTATIONS[constructor][mutation]
    model, params = wrongly_converted(tensors, change, **told(case))
    assert_differs(run_flax(model, params, images_for(case)), run_torch(theirs, images_for(case)))


@pytest.mark.parametrize("wrong", ["rows and columns", "sines and cosines", "another temperature"])
def test_a_wrong_table_is_seen(monkeypatch, wrong):
    case = SIMPLE_CASES["not square"]
    theirs = build(SimpleViT, **case)
    right = vit_flax.models.simple_sincos_2d
    tables = {
        "rows and columns": lambda g, d, p: np.roll(right(g, d, p), d // 2, axis=-1),
        "sines and cosines": lambda g, d, p: np.roll(right(g, d, p), d // 4, axis=-1),
        "another temperature": lambda g, d, p: right(g, d, p, 9999.0),
    }
    monkeypatch.setattr("vit_flax.models.vision_transformer.simple_sincos_2d", tables[wrong])
    model, params = vit_flax.from_state_dict(theirs.state_dict(), **told(case))
    assert_differs(run_flax(model, params, images_for(case)), run_torch(theirs, images_for(case)))
