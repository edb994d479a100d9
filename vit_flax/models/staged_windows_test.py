"""Stages of windows with pooled queries in every program, and configs that are refused."""

from __future__ import annotations

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_flax.cli.plan import build_config
from vit_flax.config import HieraViTConfig, ViTConfig, config_from_dict
from vit_flax.models import build_model, weight_decay_mask
from vit_flax.models.precision import compiled_for
from vit_flax.models.shapes import expected_shapes
from vit_flax.models.staged_windows import StagedWindowPositions, max_pool
from vit_flax.models.windows_test import (
    assert_recomputation_computes_the_same,
    assert_stored_bfloat16_is_near,
    draw_params,
)
from vit_flax.train.optimizer import layer_decay_rules
from vit_flax.train.patterns import assign

SMALL: dict[str, Any] = {
    "image_size": (32, 16), "in_chans": 1, "embed_dim": 8, "depth": 3, "num_heads": 1, "stages": (1, 2),
    "stage_dims": (8, 16), "stage_heads": (1, 2), "window_sizes": (4, 2), "global_attn_indexes": (2,),
    "query_pools": 1, "pyramid_top_down": (0,), "pyramid_levels": 2, "pos_embed_grid": 3,
}  # fmt: skip
CONFIG = HieraViTConfig(**SMALL, neck_chans=4)
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.standard_normal((2, 32, 16, 1)), jnp.float32)


def test_the_largest_of_each_cell_and_the_first_of_equal_ones() -> None:
    x = jnp.asarray(RNG.standard_normal((2, 3, 15, 4)), jnp.float32)
    found = max_pool(x, (5, 3), (2, 2))
    grid = np.asarray(x).reshape(2, 3, 5, 3, 4)[:, :, :4, :2]
    np.testing.assert_array_equal(found, grid.reshape(2, 3, 2, 2, 1, 2, 4).max((3, 5)).reshape(2, 3, 2, 4))
    assert max_pool(x, (5, 3), (1, 1)) is x
    share = jax.grad(lambda x: max_pool(x, (2, 2), (2, 2)).sum())(jnp.zeros((1, 4, 1)))
    np.testing.assert_array_equal(share[0, :, 0], [1, 0, 0, 0])
    assert np.isnan(max_pool(jnp.asarray([[1.0], [np.nan], [3.0], [2.0]]), (2, 2), (2, 2))).all()


def test_windows_are_joined_smaller_than_they_were_parted() -> None:
    positions = StagedWindowPositions(CONFIG, 1)
    tokens = jnp.arange(2 * 32 * 3.0).reshape(2, 32, 3)  # of 8x4
    windows = positions.partition(tokens)
    assert windows.shape == (2 * 2, 16, 3)
    pooled = max_pool(windows, positions.grid, positions.stride)
    np.testing.assert_array_equal(positions.unpartition(pooled), positions.pool(tokens))


def test_recomputation_computes_the_same() -> None:
    config = CONFIG.replace(pyramid_levels=1)  # whose map has a part of every stage
    params = draw_params(config, IMAGES)
    assert_recomputation_computes_the_same(config, params, IMAGES, "scan needs blocks that are alike")


def test_bfloat16_is_stored_where_the_program_is_for_an_accelerator() -> None:
    params = draw_params(CONFIG, IMAGES)
    assert_stored_bfloat16_is_near(CONFIG, params, IMAGES)
    for platform in ("tpu", "cuda"):
        with compiled_for(platform):
            jax.eval_shape(build_model(CONFIG, dtype=jnp.bfloat16).apply, {"params": params}, IMAGES)


def test_maps_and_features_of_blocks_are_in_their_own_grids() -> None:
    model: Any = build_model(CONFIG)
    params = draw_params(CONFIG, IMAGES)

    def run(method: str, **asked: Any) -> Any:
        return jax.eval_shape(lambda p: model.apply({"params": p}, IMAGES, **asked, method=method), params)

    assert [level.shape for level in run("feature_pyramid")] == [(2, 8, 4, 4), (2, 4, 2, 4)]
    last, found = run("forward_intermediates")
    assert [part.shape for part in found] == [(2, 8, 4, 8), (2, 4, 2, 16), (2, 4, 2, 16)]
    assert last.shape == run("features").shape == (2, *(CONFIG.feature_grid[0] * CONFIG.feature_grid[1], 4))
    early = run("forward_intermediates", indices=[0], stop_early=True, intermediates_only=True, output_fmt="NLC")
    assert early[0].shape == (2, 32, 8)
    assert [part.shape for part in run("forward_intermediates", norm=True)[1]] == [part.shape for part in found]
    with pytest.raises(ValueError, match="`intermediates_only=True` with `stop_early=True`"):
        run("forward_intermediates", indices=[0], stop_early=True)
    plain = HieraViTConfig(**SMALL, num_classes=5, final_norm=True, fc_norm=True, global_pool="avg")
    with pytest.raises(ValueError, match="no feature pyramid"):
        build_model(plain).apply({"params": draw_params(plain, IMAGES)}, IMAGES, method="feature_pyramid")
    assert jax.eval_shape(build_model(plain).apply, {"params": draw_params(plain, IMAGES)}, IMAGES).shape == (2, 5)


def test_what_training_needs_to_know() -> None:
    params = jax.eval_shape(build_model(CONFIG).init, jax.random.key(0), IMAGES)["params"]
    assert {path: tuple(leaf.shape) for path, leaf in _flat(params).items()} == expected_shapes(build_model(CONFIG))
    mask = weight_decay_mask(CONFIG, params)
    assert not mask["pos_embed_window"]
    assert not mask["pos_embed"]
    assert mask["blocks_1"]["proj"]["kernel"]
    paths = ["pos_embed_window", "patch_embed/proj/kernel", "blocks_0/mlp/fc1/kernel", "neck/convs_0/kernel"]
    found = assign(layer_decay_rules(CONFIG, 0.5), paths)
    assert [found[path] for path in paths] == [0.0625, 0.0625, 0.125, 1.0]
    assert config_from_dict(CONFIG.to_dict()) == CONFIG


@pytest.mark.parametrize(("preset", "scan"), [("sam2_hiera_tiny", False), ("samvit_base_patch16", False),
                                              ("vit_tiny_patch16_224", True)])  # fmt: skip
def test_a_plan_scans_what_can_be_scanned(preset: str, scan: bool) -> None:
    asked = {"what": preset, "changes": [], "batch": None, "dtype": None, "remat": None, "scan": None}
    assert build_config(argparse.Namespace(**asked), 4).scan is scan


def _flat(params: Any) -> dict[str, Any]:
    return {"/".join(key.key for key in path): leaf for path, leaf in jax.tree.leaves_with_path(params)}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"stages": (1, 1)}, r"depth=3 must be the sum of stages, 2"),
        ({"stage_dims": (12, 16)}, "embed_dim=8 must be stage_dims' first, 12"),
        ({"num_heads": 2}, "num_heads=2 must be stage_heads' first, 1"),
        ({"stage_heads": (1, 3)}, "stage_dims 16 is not divisible by its stage_heads 3"),
        ({"window_sizes": (4, 2, 2)}, "must be as many"),
        ({"query_pools": 2}, "query_pools=2 is too much for 2 stages"),
        ({"pyramid_levels": 3}, "pyramid_levels=3 is too much for 2 stages"),
        ({"pyramid_top_down": (2,)}, "names no stage of 2"),
        ({"pos_embed_grid": None}, "StagedWindows needs pos_embed='learned' and pos_embed_grid"),
        ({"image_size": (40, 16)}, "a grid of 10x4 is not divided by the first stage's windows of 4"),
        ({"stage_dims": (8, 8), "stage_heads": (1, 1)}, "block 1 pools queries, and so must be of another width"),
        ({"global_attn_indexes": (1,)}, "block 1 pools queries inside windows: it cannot see the whole grid"),
        ({"window_sizes": (1, 1)}, "block 1 pools queries of a 8x4 grid in windows of 1"),
        ({"query_stride": (4, 2)}, "enlarged twice, to one of 8x4"),
        ({"class_token": True, "neck_chans": None}, "windows are of patches alone"),
        ({"block": "standard"}, "StagedWindows needs block=multi_scale, got 'standard'"),
        ({"patch_padding": (1, 2, 3)}, "patch_padding must be one number or a pair"),
        ({"image_size": (0, 1)}, "image_size must be a positive integer"),
        ({"stages": (1, 2.5)}, "stages must be an integer of at least 1"),
    ],
)
def test_what_cannot_be_is_said(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HieraViTConfig(**{**SMALL, "neck_chans": 4, **fields})


def test_the_block_is_of_stages_alone() -> None:
    with pytest.raises(ValueError, match="multi_scale"):
        ViTConfig(block="multi_scale")
