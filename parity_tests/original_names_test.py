"""AIMv2 and BEiT-3 under their owners' own names, judged by timm, which reads them too; and timm's NaFlexVit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

import vit_flax
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
from parity_tests.peers import import_timm
from parity_tests.random_weights import random_images, randomise
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE
from vit_flax.parity.wrong_tensors import Wrong, changed, exchanged

timm: Any = import_timm()
from timm.models.vision_transformer import checkpoint_filter_fn  # noqa: E402

SMALL = {"img_size": 28, "depth": 2, "embed_dim": 32, "num_heads": 4}

# timm's names -> the owner's, in the order in which they are replaced
AIMV2 = {
    "norm1": "norm_1", "norm2": "norm_2", "patch_embed.": "preprocessor.patchifier.",
    "pos_embed": "preprocessor.pos_embed", "blocks.": "trunk.blocks.", r"^norm\.": "trunk.post_trunk_norm.",
    "fc1_g": "fc1", "fc1_x": "fc3",
}  # fmt: skip
BEIT3 = {
    r"^cls_token": "beit3.vision_embed.cls_token",
    r"^patch_embed\.": "beit3.vision_embed.",
    r"^pos_embed": "beit3.encoder.embed_positions.A.weight",
    r"^blocks\.(\d+)\.attn\.norm\.": r"L\1.self_attn.inner_attn_ln.A.",
    r"^blocks\.(\d+)\.attn\.proj\.": r"L\1.self_attn.out_proj.A.",
    r"^blocks\.(\d+)\.attn\.": r"L\1.self_attn.",
    r"^blocks\.(\d+)\.mlp\.norm\.": r"L\1.ffn.A.ffn_layernorm.",
    r"^blocks\.(\d+)\.mlp\.": r"L\1.ffn.A.",
    r"^blocks\.(\d+)\.norm1\.": r"L\1.self_attn_layer_norm.A.",
    r"^blocks\.(\d+)\.norm2\.": r"L\1.final_layer_norm.A.",
    r"^L": "beit3.encoder.layers.",
}


def renamed(tensors: Mapping[str, Any], names: dict[str, str]) -> dict[str, Any]:
    for old, new in names.items():
        tensors = {re.sub(old, new, name, count=1): tensor for name, tensor in tensors.items()}
    return dict(tensors)


def as_apple(module: Any) -> dict[str, Any]:
    return renamed(module.state_dict(), AIMV2)


def as_microsoft(module: Any) -> dict[str, Any]:
    """Returns the tensors as BEiT-3 has them, beside an expert of text."""
    found = {}
    for name, tensor in renamed(module.state_dict(), BEIT3).items():
        if ".self_attn.qkv." in name:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                found[name.replace(".qkv.", f".{part}_proj.A.")] = third.contiguous()
        else:
            found[name] = tensor
    table = "beit3.encoder.embed_positions.A.weight"
    found[table] = torch.cat([torch.zeros(2, found[table].shape[-1], dtype=torch.float64), found[table][0]])
    return found


def with_text(tensors: dict[str, Any]) -> dict[str, Any]:
    text = {name.replace(".A.", ".B."): tensor for name, tensor in tensors.items() if ".A." in name}
    more = {"beit3.text_embed.weight": torch.ones(9, 32), "beit3.vision_embed.mask_token": torch.ones(1, 1, 32)}
    return {**tensors, **text, **more}


def aimv2() -> Any:
    return timm.create_model("aimv2_large_patch14_224", **SMALL)


def beit3(classes: int) -> Any:
    return timm.create_model("beit3_base_patch16_224", **{**SMALL, "img_size": 32}, num_classes=classes)


CASES: dict[str, tuple[Any, Any, Any, str, dict[str, Any]]] = {
    "aimv2": (aimv2, as_apple, lambda tensors: tensors, "aimv2", {"num_heads": 4, "image_size": 28}),
    "beit3": (lambda: beit3(3), as_microsoft, with_text, "beit3", {"num_heads": 4, "image_size": 32}),
    "beit3, no head": (lambda: beit3(0), as_microsoft, with_text, "beit3", {"num_heads": 4, "image_size": 32}),
}
MUTATIONS: dict[str, dict[str, Wrong]] = {
    "aimv2": {"gate and value exchanged": exchanged("mlp.fc1", "mlp.fc3"), "wrong epsilon": {"norm_eps": 1e-6}},
    "beit3": {
        "swapped q and k": exchanged("q_proj", "k_proj"),
        "rows counted from the first": changed("embed_positions.A", lambda a: np.roll(a, -1, axis=0)),
        "wrong epsilon": {"norm_eps": 1e-6},
    },
}


@pytest.mark.parametrize("case", CASES)
def test_an_owners_names_are_read_and_written_back(case) -> None:
    make, own, beside, layout, told = CASES[case]
    module = randomise(make())
    tensors = own(module)
    load_strictly(module, {n: t.numpy() for n, t in checkpoint_filter_fn(dict(beside(tensors)), module).items()})
    images = random_images((told["image_size"],) * 2)
    expected = run_torch(module, images)
    model, params = vit_flax.from_state_dict(beside(tensors), **told)
    assert_agrees(run_flax(model, params, images), expected)
    assert_agrees(run_flax(model, params, images, "features"), run_torch(module.forward_features, images))
    assert_same_tensors(vit_flax.to_state_dict(model, params, layout), tensors)
    for mutation in MUTATIONS.get(case, {}).values():
        wrong, broken = wrongly_converted({n: t.numpy() for n, t in tensors.items()}, mutation, **told)
        assert_differs(run_flax(wrong, broken, images), expected)


def test_apples_config_file_is_followed() -> None:
    module = randomise(aimv2())
    config = {
        "model_type": "aimv2", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_channels": 3,
        "image_size": 28, "patch_size": 14, "intermediate_size": 88, "rms_norm_eps": 1e-5, "attention_dropout": 0.0,
        "projection_dropout": 0.0, "qkv_bias": False, "use_bias": False, "architectures": ["AIMv2Model"],
        "auto_map": {"AutoModel": "modeling_aimv2.AIMv2Model"}, "transformers_version": "4.46.3",
    }  # fmt: skip
    model, params = vit_flax.from_state_dict(as_apple(module), config=config)
    images = random_images((28, 28))
    assert_agrees(run_flax(model, params, images), run_torch(module, images))


NAFLEX = {
    "naflexvit_base_patch16_gap": {"num_heads": 4, "global_pool": "avg"},
    "naflexvit_base_patch16_map": {"num_heads": 4, "global_pool": "map", "pool_include_prefix": False},
    "naflexvit_base_patch16_siglip": {"num_heads": 4, "global_pool": "map", "activation": "gelu_tanh"},
}


_SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in list(NAFLEX)[1:]]


@pytest.mark.parametrize("name", [next(iter(NAFLEX)), *_SLOW])
def test_naflexvit_of_one_size(name) -> None:
    module = timm.create_model(name, depth=2, embed_dim=32, num_heads=4, patch_size=8, pos_embed_grid_size=(3, 3))
    randomise(module)
    told = {"norm_eps": 1e-6, "activation": "gelu", "image_size": 24, **NAFLEX[name]}
    model, params = vit_flax.from_state_dict(module.state_dict(), **told)
    images = random_images((24, 24))
    assert_agrees(run_flax(model, params, images), run_torch(module, images))
    assert_same_tensors(vit_flax.to_state_dict(model, params, "timm_naflex"), module.state_dict())
    plain = vit_flax.to_state_dict(model, params, "timm")  # and is timm's VisionTransformer
    assert plain["patch_embed.proj.weight"].shape == (32, 3, 8, 8)
    if name.endswith("gap"):
        resized, own = vit_flax.from_state_dict(module.state_dict(), **{**told, "image_size": (32, 16)})
        module.embeds.pos_embed.data = module.embeds.pos_embed.data.float().double()
        images = random_images((32, 16))
        expected = run_torch(module, images)
        assert (
            np.abs(run_flax(resized, own, images) - expected.numpy()).max() < FLOAT32_ABSOLUTE
        )  # resized in float32 there


def as_dinov2(module: Any, chunks: int) -> dict[str, Any]:
    """Returns a gated model of timm under DINOv2's names, its blocks in chunks, as they are trained."""
    spelled = renamed(module.state_dict(), {r"mlp\.fc1\.": "mlp.w12.", r"mlp\.fc2\.": "mlp.w3."})
    inside, first = len(module.blocks) // chunks, re.compile(r"^blocks\.(\d+)")
    found = {first.sub(lambda m: f"blocks.{int(m[1]) // inside}.{m[1]}", n): t for n, t in spelled.items()}
    return {**found, "mask_token": torch.ones(1, 32, dtype=torch.float64)}


def franca(tensors: dict[str, Any]) -> dict[str, Any]:
    """Returns the tensors as Franca's files hold them: its teacher with the heads that trained it."""
    beside = {"dino_head.mlp.0.weight", "ibot_head.last_layer.weight"}
    inside = {"rasa_head.pre_pos_layers.0.weight", "rasa_head.pos_pred.weight"}
    extra = {name: torch.ones(2, 32, dtype=torch.float64) for name in beside | {f"backbone.{name}" for name in inside}}
    return {"teacher": {**{f"backbone.{name}": tensor for name, tensor in tensors.items()}, **extra}}


@pytest.mark.parametrize("owner", ["franca", "webssl"])
def test_dinov2s_kin_under_its_names(owner) -> None:
    gated = {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 5.5, "patch_size": 14}
    module = randomise(timm.create_model("vit_base_patch14_dinov2", **{**SMALL, **gated, "num_classes": 0}))
    tensors = as_dinov2(module, chunks=2)
    told: dict[str, Any] = {"num_heads": 4, "image_size": 28}
    model, params = vit_flax.from_state_dict(franca(tensors) if owner == "franca" else tensors, **told)
    images = random_images((28, 28))
    assert_agrees(run_flax(model, params, images, "features"), run_torch(module.forward_features, images))
    own = as_dinov2(module, chunks=1)
    own = {name.replace("blocks.0.", "blocks."): tensor for name, tensor in own.items()}
    assert_same_tensors(vit_flax.to_state_dict(model, params, "dinov2"), own)


@pytest.mark.slow
def test_every_component_and_gradient_of_naflexvit_agrees() -> None:
    name = "naflexvit_base_patch16_map"
    module = timm.create_model(name, depth=2, embed_dim=32, num_heads=4, patch_size=8, pos_embed_grid_size=(3, 3))
    randomise(module)
    told = {"norm_eps": 1e-6, "activation": "gelu", "image_size": 24, **NAFLEX[name]}
    model, params = vit_flax.from_state_dict(module.state_dict(), **told)
    assert_components_agree(module, model, params, "timm_naflex", random_images((24, 24)))
