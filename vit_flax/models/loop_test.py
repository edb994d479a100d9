"""Rematerialisation and scan change cost alone; dropout and stochastic depth are off without a key."""

import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_flax.config import BeitConfig, DropRates, NaFlexViTConfig, RopeViTConfig, T2TViTConfig, ViTConfig
from vit_flax.models import build_model
from vit_flax.models.drop import drop_path, dropout
from vit_flax.models.precision import compiled_for
from vit_flax.parity.tolerances import FLOAT32_GRADIENT, FLOAT32_RELATIVE, FLOAT32_ROUNDING

SMALL: dict[str, Any] = {
    "image_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5, "in_chans": 1,
}  # fmt: skip
ALL = DropRates(drop_path_rate=0.4, attn_drop_rate=0.2, proj_drop_rate=0.2, pos_drop_rate=0.1, drop_rate=0.1)
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.standard_normal((4, 8, 8, 1)), jnp.float32)


def _params(model):
    shapes = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(tree, [jnp.asarray(0.3 * RNG.standard_normal(x.shape), x.dtype) for x in leaves])


@pytest.mark.parametrize("key", [None, 1], ids=["deterministic", "dropping"])
@pytest.mark.parametrize(
    ("remat", "scan"),
    [("full", False), ("none", True), pytest.param("dots_with_no_batch_dims_saveable", True, marks=pytest.mark.slow)],
)
def test_remat_and_scan_compute_the_same(remat: str, scan: bool, key: int | None) -> None:
    config = ViTConfig(**SMALL, init_values=0.1)
    plain = build_model(config, drop=ALL)
    other = build_model(config, drop=ALL, remat=remat, scan=scan)
    params = _params(plain)
    assert jax.tree.structure(params) == jax.tree.structure(_params(other))
    rngs = {} if key is None else {"dropout": jax.random.key(key)}

    def loss(model, params):
        return jnp.square(model.apply({"params": params}, IMAGES, rngs=rngs)).mean()

    expected = jax.jit(jax.value_and_grad(lambda p: loss(plain, p)))(params)
    got = jax.jit(jax.value_and_grad(lambda p: loss(other, p)))(params)
    for (path, value), other_value in zip(jax.tree.leaves_with_path(expected[1]), jax.tree.leaves(got[1]), strict=True):
        np.testing.assert_allclose(other_value, value, **FLOAT32_GRADIENT, err_msg=str(path))
    np.testing.assert_allclose(got[0], expected[0], rtol=FLOAT32_RELATIVE)


@pytest.mark.parametrize(("platform", "is_rounded"), [("cpu", False), ("gpu", True)])
def test_a_loop_stores_gradients_of_kernels_as_activations(platform: str, is_rounded: bool) -> None:
    config = ViTConfig(**SMALL)
    params = _params(build_model(config))

    def gradients(scan: bool) -> dict[str, jax.Array]:
        model = build_model(config, dtype=jnp.bfloat16, scan=scan)

        def loss(params):
            logits: Any = model.apply({"params": params}, IMAGES)
            return jnp.square(logits).mean()

        found: Any = jax.jit(jax.grad(loss))(params)["blocks_1"]["mlp"]["fc1"]
        return found

    with compiled_for(platform):
        looped, alone = gradients(True), gradients(False)
    narrow = looped["kernel"].astype(jnp.bfloat16).astype(jnp.float32)
    assert looped["kernel"].dtype == jnp.float32
    assert bool((narrow == looped["kernel"]).all()) == is_rounded
    for name in ("kernel", "bias"):
        scale = np.abs(alone[name]).max()
        np.testing.assert_allclose(looped[name] / scale, alone[name] / scale, atol=2**-8)


@pytest.mark.parametrize(
    ("fields", "hidden"),
    [({}, 64), ({"mlp_layer": "swiglu"}, 128), ({"block": "parallel_scaling"}, 64)],
    ids=["mlp", "swiglu", "parallel"],
)
def test_a_loop_keeps_what_the_backward_pass_cannot_compute_elementwise(fields: dict[str, Any], hidden: int) -> None:
    config = ViTConfig(**SMALL, **fields)
    params = _params(build_model(config))

    def kept() -> list[tuple[int, ...]]:
        model = build_model(config, dtype=jnp.bfloat16, scan=True)

        def loss(params):
            logits: Any = model.apply({"params": params}, IMAGES)
            return logits.sum()

        loops = [eqn for eqn in jax.make_jaxpr(jax.grad(loss))(params).eqns if eqn.primitive.name == "scan"]
        return [var.aval.shape for var in loops[0].outvars if var.aval.ndim == 4]

    with compiled_for("tpu"):
        shapes = kept()
    assert sum(shape[-1] >= hidden for shape in shapes) == 1  # the layer before its activation
    assert sum(shape[-1] == 1 for shape in shapes) == 4 - 2 * (fields == {"block": "parallel_scaling"})  # statistics
    with compiled_for("cpu"):  # which computes statistics again, and keeps the activated layer
        assert not any(shape[-1] == 1 for shape in kept())


SHALLOW = {**SMALL, "depth": 2}
FAMILIES: dict[str, ViTConfig] = {
    "one rotation for all": RopeViTConfig(**SHALLOW, reg_tokens=1),
    "a rotation of each block": RopeViTConfig(
        **SHALLOW, rope_type="mixed", rope_rotate_half=False, rope_theta=10.0, key_bias=True
    ),
    "one table for all": BeitConfig(**SHALLOW, shared_rel_pos_bias=True, rel_pos_bias=False),
    "tables of each block and one": BeitConfig(**SHALLOW, shared_rel_pos_bias=True, rel_pos_bias=True),
    "a mask": NaFlexViTConfig(**SHALLOW),
}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(f, marks=pytest.mark.slow) if f in ("one rotation for all", "one table for all") else f
        for f in FAMILIES
    ],
)
def test_remat_and_scan_give_blocks_what_they_need(family: str) -> None:
    plain = build_model(FAMILIES[family])
    params = _params(plain)

    def loss(model, params):
        return jnp.square(model.apply({"params": params}, IMAGES)).mean()

    expected = jax.jit(jax.value_and_grad(lambda p: loss(plain, p)))(params)
    assert all(np.asarray(leaf).any() for leaf in jax.tree.leaves(expected[1]))
    for changes in ({"remat": "full"}, {"scan": True, "remat": "full"}):
        other = build_model(FAMILIES[family], **changes)
        got = jax.jit(jax.value_and_grad(lambda p, m=other: loss(m, p)))(params)
        for (path, value), theirs in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(got), strict=True):
            np.testing.assert_allclose(theirs, value, **FLOAT32_GRADIENT, err_msg=f"{changes} {path}")


def _kernels(depth: int, compiler: dict[str, str | bool]) -> int:
    """Returns how many fusions of a scanned training step on the CPU are unlike all others."""
    model = build_model(ViTConfig(**{**SMALL, "depth": depth}), scan=True)
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]

    def step(params, images):
        def loss(params):
            logits: Any = model.apply({"params": params}, images)
            return jnp.square(logits).mean()

        gradients = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

    text = jax.jit(step).lower(params, IMAGES).compile(compiler).as_text() or ""
    bodies = re.findall(r"^%fused_computation.*?^}", text, re.DOTALL | re.MULTILINE)
    unnamed = {re.sub(r"%[\w.\-]+|[\w.]+(?=: )|, metadata={.*?}", "", body) for body in bodies}
    return len(unnamed)


def test_a_longer_loop_has_no_further_kernels_to_compile(users_compiler: dict[str, str | bool]) -> None:
    kernels = _kernels(3, users_compiler)
    assert kernels > 10
    assert _kernels(5, users_compiler) == kernels


def test_remat_keeps_what_the_policy_says() -> None:
    def residual_bytes(remat: str) -> int:
        model = build_model(ViTConfig(**SMALL), remat=remat)
        params = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
        saved = jax.eval_shape(lambda p: jax.vjp(lambda q: model.apply({"params": q}, IMAGES), p), params)[1]
        return sum(leaf.size for leaf in jax.tree.leaves(saved))

    assert residual_bytes("full") < residual_bytes("dots_with_no_batch_dims_saveable") < residual_bytes("none")
    with pytest.raises(ValueError, match="no remat policy 'dots'"):
        residual_bytes("dots")


@pytest.mark.parametrize(
    "block", ["standard", "res_post", "parallel_scaling", "parallel_things", "diff", "rope", "beit", "naflex"]
)
def test_every_block_drops_paths_and_only_with_a_key(block: str) -> None:
    families = {"rope": RopeViTConfig, "beit": BeitConfig, "naflex": NaFlexViTConfig}
    config = families[block](**SMALL) if block in families else ViTConfig(**SMALL, block=block)
    model, plain = build_model(config, drop=DropRates(drop_path_rate=0.5)), build_model(config)
    params = _params(plain)
    call = jax.jit(lambda key: model.apply({"params": params}, IMAGES, rngs={"dropout": key}))
    texts = [str(jax.make_jaxpr(lambda p, m=m: m.apply({"params": p}, IMAGES))(params)) for m in (model, plain)]
    assert "random" not in texts[0]
    assert texts[0] == texts[1]
    first, second = call(jax.random.key(1)), call(jax.random.key(2))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, call(jax.random.key(1)))


class Dropper(nn.Module):
    rate: float
    of_paths: bool

    @nn.compact
    def __call__(self, x):
        return drop_path(self, x, self.rate) if self.of_paths else dropout(self, x, self.rate)


@pytest.mark.parametrize("of_paths", [False, True])
def test_dropping_keeps_the_mean(of_paths: bool) -> None:
    x = jnp.ones((20_000, 2, 1))
    out = np.asarray(Dropper(0.3, of_paths).apply({}, x, rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_allclose(np.unique(out), [0, 1 / 0.7], rtol=FLOAT32_ROUNDING)
    assert abs(out.mean() - 1) < 5 * (0.3 / 0.7 / 20_000) ** 0.5
    assert (out[:, 0] == out[:, 1]).all() == of_paths


@pytest.mark.parametrize("field", ["attn_drop_rate", "proj_drop_rate", "pos_drop_rate", "drop_rate"])
def test_each_rate_acts(field: str) -> None:
    config = ViTConfig(**{**SMALL, "depth": 1})
    model, params = build_model(config, drop=DropRates(**{field: 0.3})), _params(build_model(config))
    call = jax.jit(lambda key: model.apply({"params": params}, IMAGES, rngs={"dropout": key}))
    assert not np.array_equal(call(jax.random.key(0)), call(jax.random.key(1)))


def test_a_rate_of_zero_costs_nothing() -> None:
    model = build_model(T2TViTConfig(**{k: v for k, v in SMALL.items() if k != "patch_size"} | {"image_size": 16}))
    images = jnp.zeros((2, 16, 16, 1))
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    text = str(jax.make_jaxpr(lambda p: model.apply({"params": p}, images))(params))
    assert "random" not in text


def test_what_a_block_has_no_place_for_is_refused() -> None:
    model = build_model(ViTConfig(**SMALL, block="parallel_scaling"), drop=DropRates(proj_drop_rate=0.1))
    with pytest.raises(ValueError, match="no place for proj_drop_rate"):
        jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    model = build_model(ViTConfig(**SMALL, block="diff"), drop=DropRates(attn_drop_rate=0.1))
    with pytest.raises(ValueError, match="'diff' has no place for attn_drop_rate"):
        jax.eval_shape(model.init, jax.random.key(0), IMAGES)
    model = build_model(ViTConfig(**SMALL, block="diff"), scan=True)
    params = jax.eval_shape(model.init, jax.random.key(0), IMAGES)["params"]
    with pytest.raises(ValueError, match="alike"):
        jax.eval_shape(lambda p: model.apply({"params": p}, IMAGES), params)
