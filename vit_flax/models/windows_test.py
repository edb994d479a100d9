"""Window partition and its inverse in every program, and configs that are refused."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_flax.config import WindowedRopeViTConfig, WindowedViTConfig, config_from_dict
from vit_flax.models import attention_backend, build_model
from vit_flax.models.precision import compiled_for
from vit_flax.models.shapes import _traced_shapes, expected_shapes
from vit_flax.models.windows import RelativeWindowPositions
from vit_flax.parity.tolerances import FLOAT32_GRADIENT, FLOAT32_RELATIVE

SMALL: dict[str, Any] = {
    "image_size": (20, 12), "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3,
    "in_chans": 1, "window_size": 2, "global_attn_indexes": (1,),
}  # fmt: skip
CONFIGS = {"relative": WindowedViTConfig(**SMALL, neck_chans=8), "rotated": WindowedRopeViTConfig(**SMALL)}
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.standard_normal((2, 20, 12, 1)), jnp.float32)


def draw_params(config: Any, images: jax.Array = IMAGES) -> Any:
    shapes = jax.eval_shape(build_model(config).init, jax.random.key(0), images)["params"]
    return jax.tree.map(lambda x: jnp.asarray(0.3 * RNG.standard_normal(x.shape), x.dtype), shapes)


def assert_recomputation_computes_the_same(config: Any, params: Any, images: jax.Array, refused: str) -> Any:
    """Fails unless gradients are the same with rematerialisation and a scan is refused; returns the loss."""

    def gradients(**fields: Any) -> Any:
        model: Any = build_model(config, **fields)
        return jax.jit(jax.value_and_grad(lambda p: jnp.square(model.apply({"params": p}, images)).mean()))(params)

    expected = gradients()
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(expected[1]))
    found = gradients(remat="full")
    for (path, value), other in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(other, value, **FLOAT32_GRADIENT, err_msg=str(path))
    with pytest.raises(ValueError, match=refused):
        gradients(scan=True)
    return expected[0]


def assert_stored_bfloat16_is_near(config: Any, params: Any, images: jax.Array) -> None:
    wide: Any = jax.jit(build_model(config).apply)({"params": params}, images)
    with compiled_for("cuda"):
        narrow = jax.jit(build_model(config, dtype=jnp.bfloat16).apply)({"params": params}, images)
    # a bfloat16 has eight bits: a few of their roundings
    assert np.linalg.norm(narrow - wide) < 0.03 * np.linalg.norm(wide)


def test_windows_are_joined_as_they_were_parted() -> None:
    positions = RelativeWindowPositions(CONFIGS["relative"], 0)
    tokens = jnp.arange(2 * 15 * 4.0).reshape(2, 15, 4)
    windows = positions.partition(tokens)
    assert windows.shape == (2 * 3 * 2, 4, 4)
    np.testing.assert_array_equal(windows[0], tokens[0, [0, 1, 3, 4]])  # of rows of three
    np.testing.assert_array_equal(windows[1, [1, 3]], jnp.zeros((2, 4)))
    np.testing.assert_array_equal(positions.unpartition(windows), tokens)
    whole = RelativeWindowPositions(CONFIGS["relative"], 1)
    assert whole.partition(tokens) is tokens is whole.unpartition(tokens)


@pytest.mark.parametrize("name", ["relative", pytest.param("rotated", marks=pytest.mark.slow)])
def test_recomputation_and_other_programs_compute_the_same(name: str) -> None:
    config = CONFIGS[name]
    params = draw_params(config)

    refused = "some attend inside windows, some to the whole grid"
    expected = assert_recomputation_computes_the_same(config, params, IMAGES, refused)
    with attention_backend("plain"):
        model: Any = build_model(config)
        plain = jax.jit(lambda p: jnp.square(model.apply({"params": p}, IMAGES)).mean())(params)
        np.testing.assert_allclose(plain, expected, rtol=FLOAT32_RELATIVE)


@pytest.mark.parametrize("name", CONFIGS)
def test_bfloat16_is_stored_where_the_program_is_for_an_accelerator(name: str) -> None:
    assert_stored_bfloat16_is_near(CONFIGS[name], draw_params(CONFIGS[name]), IMAGES)
    with compiled_for("tpu"), attention_backend("rows"), pytest.raises(ValueError, match="'rows' cannot compute"):
        jax.eval_shape(
            build_model(CONFIGS["relative"], dtype=jnp.bfloat16).apply,
            {"params": draw_params(CONFIGS["relative"])},
            IMAGES,
        )


def test_features_of_blocks_are_in_the_grid() -> None:
    config = CONFIGS["relative"]
    model: Any = build_model(config)
    params = draw_params(config)

    def run(norm: bool) -> Any:
        return jax.jit(lambda p: model.apply({"params": p}, IMAGES, norm=norm, method="forward_intermediates"))(params)

    last, found = run(False)
    assert [part.shape for part in found] == [(2, 5, 3, 16)] * 2
    _, normed = run(True)
    np.testing.assert_allclose(normed[-1].reshape(2, 15, 8), last, rtol=FLOAT32_RELATIVE)


def test_shapes_are_told_by_the_first_block_of_a_kind() -> None:
    config = WindowedViTConfig(**{**SMALL, "depth": 8, "global_attn_indexes": (2, 5)})
    model = build_model(config)
    assert expected_shapes(model) == _traced_shapes(model, 8)
    assert expected_shapes(model)["blocks_5/attn/rel_pos_h"] == (9, 8)
    assert config_from_dict(config.to_dict()) == config
    assert config.replace(global_attn_indexes=2).global_attn_indexes == (2,)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"class_token": True}, "windows are of patches alone"),
        ({"reg_tokens": 2}, "windows are of patches alone"),
        ({"window_size": -1}, "window_size must be an integer of at least 0"),
        ({"global_attn_indexes": (1.5,)}, "global_attn_indexes must be an integer"),
        ({"global_attn_indexes": None}, "global_attn_indexes must be an integer"),
        ({"block": "parallel_things"}, "needs block=standard or res_post"),
        ({"neck_chans": 8, "final_norm": True}, "neck_chans needs final_norm=False"),
        ({"neck_chans": -1}, "neck_chans must be an integer of at least 0"),
        ({"pos_embed": "none", "pos_embed_grid": 3}, "pos_embed_grid needs pos_embed='learned'"),
        ({"pos_embed_fit": "stretched"}, "pos_embed_fit must be one of"),
    ],
)
def test_what_cannot_be_is_said(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        WindowedViTConfig(**{**SMALL, **fields})
    with pytest.raises(ValueError, match="rows and columns without a number"):
        WindowedRopeViTConfig(**{**SMALL, "window_size": 0})
