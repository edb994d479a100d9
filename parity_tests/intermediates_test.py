"""Intermediate features: timm's forward_intermediates, T2T's blocks, transformers' hidden_states, in float64."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vit_flax
from parity_tests.agreement import assert_agrees, assert_differs, run_torch
from parity_tests.peers import import_timm
from parity_tests.random_weights import in_float64, random_images, randomise
from parity_tests.small_transformers import FAMILIES, small_transformer
from parity_tests.t2t_original import OriginalT2TViT
from vit_flax.presets import get_preset

timm = import_timm()

INDICES = (1, -1)
SMALL = {"embed_dim": 32, "num_heads": 4}
FAST = (
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "vit_base_patch16_clip_224",
    "vit_small_patch14_reg4_dinov2", "vit_base_patch16_siglip_gap_224", "eva02_tiny_patch14_224",
    "vit_small_plus_patch16_dinov3", "beit_base_patch16_224",
)  # fmt: skip
SWEEP = (
    "vit_base_patch16_224_miil", "vit_base_patch8_224", "vit_base_patch16_xp_224", "vit_base_patch16_plus_240",
    "vit_small_patch16_36x1_224", "vit_small_patch16_18x2_224", "vit_medium_patch16_gap_240",
    "vit_large_patch14_clip_224",
    "vit_base_patch32_clip_quickgelu_224", "vit_xsmall_patch16_clip_224", "vit_base_patch16_rpn_224",
    "vit_wee_patch16_reg1_gap_256", "vit_betwixt_patch16_reg4_gap_256", "vit_pwee_patch16_reg1_gap_256",
    "vit_dlittle_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256", "vit_so150m_patch16_reg4_map_256",
    "vit_so400m_patch14_siglip_224", "vit_small_patch14_dinov2", "vit_giant_patch14_reg4_dinov2",
    "vit_huge_patch14_gap_224",
    "vit_intern300m_patch14_448", "aimv2_large_patch14_224", "flexivit_small", "test_vit", "test_vit2", "test_vit3",
    "test_vit4", "deit_base_distilled_patch16_224", "deit3_small_patch16_224", "deit3_medium_patch16_224",
    "eva_large_patch14_196", "eva02_base_patch14_448", "eva02_base_patch16_clip_224", "eva02_large_patch14_clip_224",
    "vit_pe_core_tiny_patch16_384", "vit_pe_spatial_tiny_patch16_512", "vit_small_patch16_rope_mixed_ape_224",
    "vit_tiny_patch16_dinov3_qkvb", "vit_7b_patch16_dinov3", "beit3_base_patch16_224", "beitv2_large_patch16_224",
)  # fmt: skip


def build(name: str, depth: int) -> tuple[Any, Any, Any, np.ndarray]:
    """Returns timm's model, narrow and of few blocks, ours of its weights, and images of two by three patches."""
    config = get_preset(name).config
    size = (3 * config.patch_size[0], 2 * config.patch_size[1])
    told: dict[str, Any] = {"depth": depth, "num_classes": 3 if config.num_classes else 0}
    told |= SMALL if config.embed_dim > 200 else {}
    theirs = in_float64(randomise(timm.create_model(name, img_size=size, **told)))
    model, params = vit_flax.from_state_dict(theirs.state_dict(), config=name, image_size=size, **told)
    return theirs, model, params, random_images(size)


def their_grids(theirs: Any, images: np.ndarray, **asked: Any) -> tuple[Any, list[Any]]:
    """Returns timm's features and its intermediates in the order of `jax.tree.leaves`, grids with channels last."""
    final, found = run_torch(lambda x: theirs.forward_intermediates(x, **asked), images)
    parts = [part for one in found for part in (one if isinstance(one, tuple) else (one,))]
    return final, [part.permute(0, 2, 3, 1) if part.ndim == 4 else part for part in parts]


def check(name: str, depth: int) -> None:
    theirs, model, params, images = build(name, depth)
    has_prefix = bool(model.config.num_prefix_tokens)

    def ours(params: Any, images: Any, norm: bool) -> Any:
        asked = {"norm": norm, "return_prefix_tokens": True, "method": "forward_intermediates"}
        return model.apply({"params": params}, images, list(INDICES), **asked)

    both = jax.jit(lambda p, x: [ours(p, x, norm) for norm in (False, True)])(params, jnp.asarray(images))
    for norm, (final, found) in enumerate(both):
        asked = {"indices": list(INDICES), "norm": bool(norm), "return_prefix_tokens": has_prefix}
        their_final, expected = their_grids(theirs, images, **asked)
        assert_agrees(final, their_final)
        assert len(jax.tree.leaves(found)) == len(expected) == len(INDICES) * (1 + has_prefix)
        for mine, other in zip(jax.tree.leaves(found), expected, strict=True):
            assert_agrees(mine, other)
        assert_differs(jax.tree.leaves(found)[0], expected[-1 - has_prefix])  # another block is another result


@pytest.mark.parametrize("name", FAST)
def test_representative_models_of_timm(name: str) -> None:
    check(name, 3)


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEP)
def test_models_of_timm(name: str) -> None:
    check(name, 4)


def test_every_way_of_asking_is_timms() -> None:
    theirs, model, params, images = build("vit_small_patch14_reg4_dinov2", 3)
    for asked in (
        {"indices": 2}, {"indices": None}, {"indices": [2, 0, 0, -1]}, {"indices": [0], "stop_early": True},
        {"indices": [1], "output_fmt": "NLC"}, {"indices": [0], "stop_early": True, "norm": True},
        {"indices": 1, "output_fmt": "NLC", "return_prefix_tokens": True},
    ):  # fmt: skip
        final, expected = their_grids(theirs, images, **asked)
        own: Any = model.apply({"params": params}, images, **asked, method="forward_intermediates")
        assert_agrees(own[0], final)
        for mine, other in zip(jax.tree.leaves(own[1]), expected, strict=True):
            assert_agrees(mine, other)
        only: Any = model.apply(
            {"params": params}, images, **asked, intermediates_only=True, method="forward_intermediates"
        )
        assert jax.tree.all(jax.tree.map(np.array_equal, only, own[1]))
    # DINOv2's and DINOv3's own interface
    dino = run_torch(lambda x: theirs.get_intermediate_layers(x, [0, 2], reshape=True, norm=True), images)
    own = model.apply({"params": params}, images, [0, 2], norm=True, method="forward_intermediates")
    for mine, other in zip(own[1], dino, strict=True):
        assert_agrees(mine, other.permute(0, 2, 3, 1))


def test_the_original_t2t_gives_the_same() -> None:
    theirs = randomise(OriginalT2TViT(img_size=48, embed_dim=32, depth=2, num_heads=4, mlp_ratio=2.5, token_dim=16))
    seen: list[Any] = []
    for block in theirs.blocks:
        block.register_forward_hook(lambda _module, _args, out: seen.append(out))
    images = random_images((48, 48))
    run_torch(theirs, images)
    model, params = vit_flax.from_state_dict(theirs.state_dict(), num_heads=4, qk_scale=None)
    asked: Any = {"return_prefix_tokens": True, "intermediates_only": True, "method": "forward_intermediates"}
    own: Any = jax.jit(lambda p, x: model.apply({"params": p}, x, **asked))(params, images)
    for (patches, prefix), other in zip(own, seen, strict=True):
        assert_agrees(prefix, other[:, :1])
        assert_agrees(patches, other[:, 1:].reshape(2, 3, 3, -1))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_hidden_states(family: str, tmp_path: Any) -> None:
    theirs = small_transformer(family, tmp_path)
    images = random_images((24, 24))
    out = run_torch(lambda x: theirs(x, output_hidden_states=True), images)
    model, params = vit_flax.load(tmp_path)
    asked: Any = {"output_fmt": "NLC", "return_prefix_tokens": True, "method": "forward_intermediates"}
    _, own = jax.jit(lambda p, x: model.apply({"params": p}, x, **asked))(params, images)
    assert len(own) == len(out.hidden_states) - 1
    for mine, other in zip(own, out.hidden_states[1:], strict=True):
        mine = jnp.concatenate(mine[::-1], axis=1) if isinstance(mine, tuple) else mine
        assert_agrees(mine, other)
    assert_differs(own[0][0] if isinstance(own[0], tuple) else own[0], out.hidden_states[2][:, -9:])
