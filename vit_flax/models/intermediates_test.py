"""Tokens after any of the blocks: every family, scanned or rematerialised, on meshes; others are not stored."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from vit_flax.config import (
    BeitConfig,
    LucidrainsViTConfig,
    NaFlexViTConfig,
    RopeViTConfig,
    T2TViTConfig,
    ViTConfig,
)
from vit_flax.models import build_model
from vit_flax.models.intermediates import taken_blocks
from vit_flax.models.precision import Precision, compiled_for
from vit_flax.parity.tolerances import FLOAT32_GRADIENT, FLOAT32_LIBRARIES, policy_allowed

SIZES: dict[str, Any] = {"image_size": (8, 12), "embed_dim": 16, "depth": 2, "num_heads": 2, "in_chans": 1}
SMALL: dict[str, Any] = {**SIZES, "patch_size": 4, "num_classes": 3}
FAMILIES: dict[str, ViTConfig] = {
    "pre-norm, registers": ViTConfig(**SMALL, pre_norm=True, reg_tokens=2, init_values=0.1),
    "norm after the pooling": ViTConfig(**SMALL, global_pool="avg", fc_norm=True, class_token=False),
    "pooled by attention": ViTConfig(**SMALL, global_pool="map", class_token=False),
    "learned rotation": RopeViTConfig(**SMALL, rope_type="mixed", rope_rotate_half=False),
    "relative bias": BeitConfig(**SMALL, rel_pos_bias=True, shared_rel_pos_bias=True),
    "padded patches": NaFlexViTConfig(**SMALL),
    "normed patches": LucidrainsViTConfig(**SMALL),
    "soft splits": T2TViTConfig(**SIZES, softsplit_kernels=(3, 3, 3), token_chan=4),
    "norms after": ViTConfig(**SMALL, block="res_post"),
    "wide": ViTConfig(**SMALL, block="parallel_things"),
    "differential": ViTConfig(**SMALL, block="diff"),
}
FAST = ("pre-norm, registers", "norm after the pooling", "learned rotation", "relative bias", "differential")
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.standard_normal((2, 8, 12, 1)), jnp.float32)
SCANNED: dict[str, Any] = {"scan": True, "remat": "full"}
ASKED: dict[str, Any] = {"indices": [0, -1], "return_prefix_tokens": True, "method": "forward_intermediates"}


def _params(config: ViTConfig) -> Any:
    shapes = jax.eval_shape(build_model(config).init, jax.random.key(0), IMAGES)["params"]
    return jax.tree.map(lambda x: jnp.asarray(0.3 * RNG.standard_normal(x.shape), x.dtype), shapes)


def _run(config: ViTConfig, params: Any, fields: Any = (), **asked: Any) -> Any:
    return jax.jit(lambda p: build_model(config, **dict(fields)).apply({"params": p}, IMAGES, **{**ASKED, **asked}))(
        params
    )


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_family_has_them_and_scanning_or_recomputing_changes_nothing(name: str) -> None:
    config = FAMILIES[name]
    params = _params(config)
    prefix = config.num_prefix_tokens

    def both(p: Any) -> Any:
        model = build_model(config)
        last = model.apply({"params": p}, IMAGES, norm=True, output_fmt="NLC", **{**ASKED, "indices": 1})
        return model.apply({"params": p}, IMAGES, method="features"), last, model.apply({"params": p}, IMAGES, **ASKED)

    features, (final, last), (_, found) = jax.jit(both)(params)
    last = jnp.concatenate(last[0][::-1], axis=1) if prefix else last[0]
    np.testing.assert_array_equal(final, features)
    np.testing.assert_array_equal(last, features)  # the last block's, normalised, are the model's own
    assert [x.shape for x in jax.tree.leaves(found)] == 2 * (
        [(2, *config.grid_size, 16), (2, prefix, 16)] if prefix else [(2, *config.grid_size, 16)]
    )
    assert not np.allclose(jax.tree.leaves(found)[0], jax.tree.leaves(found)[-1 - bool(prefix)], atol=0.1)
    same = _run(config, params, SCANNED if config.block != "diff" else {"remat": "full"})
    for mine, expected in zip(jax.tree.leaves(same), jax.tree.leaves((features, found)), strict=True):
        np.testing.assert_allclose(mine, expected, **FLOAT32_LIBRARIES)


def _loss(config: ViTConfig, params: Any, images: Any, **fields: Any) -> Any:
    asked: Any = {"indices": [0], "intermediates_only": True, "method": "forward_intermediates"}
    found: Any = build_model(config, **fields).apply({"params": params}, images, **asked)
    return sum(jnp.square(x).mean() for x in found)


def test_gradients_reach_blocks_up_to_the_one_that_is_asked_for() -> None:
    config = FAMILIES["pre-norm, registers"]
    params = _params(config)
    plain, scanned = (jax.jit(jax.grad(lambda p, f=f: _loss(config, p, IMAGES, **f)))(params) for f in ({}, SCANNED))
    size = {name: max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree)) for name, tree in plain.items()}
    assert min(size[name] for name in ("blocks_0", "patch_embed", "norm_pre")) > 0
    assert size["blocks_1"] == size["norm"] == size["head"] == 0
    for mine, expected in zip(jax.tree.leaves(scanned), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(mine, expected, **FLOAT32_GRADIENT)


def test_stopping_early_needs_no_later_block_and_scanning_keeps_no_other_one() -> None:
    config = ViTConfig(**{**SMALL, "depth": 4})
    params = _params(config)
    asked: Any = {"indices": [0, 1], "stop_early": True, "method": "forward_intermediates"}
    first = {name: tree for name, tree in params.items() if name not in ("blocks_2", "blocks_3")}
    for fields in ({}, {"scan": True}):
        model = build_model(config, **fields)

        def run(first: Any, params: Any, model: Any = model) -> Any:
            whole = model.apply({"params": params}, IMAGES, **{**asked, "stop_early": False})
            normed = model.apply({"params": first}, IMAGES, norm=True, output_fmt="NLC", **asked)
            return model.apply({"params": first}, IMAGES, **asked), whole, normed

        short, whole, normed = jax.jit(run)(first, params)
        np.testing.assert_array_equal(short[1], whole[1])
        assert not np.allclose(short[0], whole[0], atol=0.1)
        np.testing.assert_array_equal(normed[0][:, 1:], normed[1][-1])  # as in timm: the features end there, too

    def shapes(asked: Any) -> set[tuple[int, ...]]:
        text = str(
            jax.make_jaxpr(lambda p: build_model(config, scan=True).apply({"params": p}, IMAGES, **asked))(params)
        )
        return {tuple(map(int, found.split(","))) for found in re.findall(r"f32\[(\d+,2,7,16)\]", text)}

    assert shapes({**asked, "stop_early": False}) == {(1, 2, 7, 16), (2, 2, 7, 16)}
    assert (4, 2, 7, 16) in shapes({**asked, "indices": None})  # so it would be seen


def test_what_is_returned_is_float32_whatever_is_stored() -> None:
    config = FAMILIES["pre-norm, registers"]
    params = _params(config)

    def run(platform: str | None) -> Any:
        with compiled_for(platform):
            return _run(config, params, {"dtype": jnp.bfloat16})

    exact = jax.tree.leaves(_run(config, params))
    allowed = policy_allowed(Precision(compute=jnp.bfloat16, stored=jnp.bfloat16), config.depth, 64)
    for mine, expected in zip(jax.tree.leaves(run("gpu")), exact, strict=True):
        assert mine.dtype == jnp.float32
        assert 0 < jnp.linalg.norm(mine - expected) < allowed * jnp.linalg.norm(expected)


@pytest.mark.parametrize("fields", [{}, SCANNED])
def test_meshes_whose_types_say_where_arrays_lie(fields: Any) -> None:
    mesh = AbstractMesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    config = FAMILIES["pre-norm, registers"]

    def on(spec: PartitionSpec, x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    same, batch = PartitionSpec(), PartitionSpec("data")
    params, images = jax.tree.map(lambda x: on(same, x), _params(config)), on(batch, IMAGES)
    step = jax.value_and_grad(lambda p, x: _loss(config, p, x, **fields))

    def mapped(params: Any, images: Any) -> Any:
        value, gradients = step(params, images)
        return jax.lax.pmean(value, "data"), gradients

    both = jax.shard_map(mapped, mesh=mesh, in_specs=(same, batch), out_specs=(same, same))
    with jax.sharding.use_abstract_mesh(mesh):
        for run in (step, both):
            traced = jax.eval_shape(jax.jit(run), params, images)
            assert jax.tree.map(lambda x: x.shape, traced[1]) == jax.tree.map(lambda x: x.shape, params)
        grids: Any = jax.eval_shape(
            lambda p, x: build_model(config, **fields).apply({"params": p}, x, **ASKED), params, images
        )
    assert grids[1][0][0].sharding.spec[0] == "data"


def test_what_is_asked_for_is_understood_or_refused_in_one_line() -> None:
    assert taken_blocks(None, 3) == (0, 1, 2)
    assert taken_blocks(2, 12) == (10, 11)
    assert taken_blocks([-1, 3, 3, 0], 12) == (0, 3, 11)
    assert taken_blocks(np.asarray([2, 5]), 12) == (2, 5)  # pyright: ignore[reportArgumentType]
    assert taken_blocks(np.int64(1), 12) == (11,)  # pyright: ignore[reportArgumentType]
    for indices, told in (
        ([12], "no block 12: the model has 12, numbered 0 to 11"), ([0, -13], "no block -13"),
        ([], "indices is empty"), (0, "indices=0 asks for so many last blocks"), (13, r"1 to 12, or \[13\]"),
        (True, "got True"), ("3", "got '3'"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            taken_blocks(indices, 12)  # pyright: ignore[reportArgumentType]
    model, params = build_model(FAMILIES["padded patches"]), _params(FAMILIES["padded patches"])
    shapes = {"mask": jnp.ones((2, 6), bool), "spatial_shapes": jnp.asarray([[2, 3], [3, 2]])}
    for asked, told in (
        ({"output_fmt": "NCHW"}, "channels last here: 'NHWC'"), ({"output_fmt": "NHW"}, "must be 'NHWC' or 'NLC'"),
        (shapes, "no grid in common: pass `output_fmt='NLC'`"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            model.apply({"params": params}, IMAGES, **asked, method="forward_intermediates")  # pyright: ignore[reportArgumentType]
