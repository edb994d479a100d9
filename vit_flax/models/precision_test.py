"""One value says the dtypes of a model, and reaches every layer."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import vit_flax
from vit_flax.config import BeitConfig, LucidrainsViTConfig, NaFlexViTConfig, RopeViTConfig, T2TViTConfig, ViTConfig
from vit_flax.models import LayerNorm, Precision, RMSNorm, attention_backend, build_model
from vit_flax.models.precision import compiled_for
from vit_flax.parity.tolerances import FLOAT32_RELATIVE, GRADIENT_FACTOR, policy_allowed

SMALL: dict[str, Any] = {
    "image_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5, "in_chans": 1,
}  # fmt: skip
T2T: dict[str, Any] = {**{k: v for k, v in SMALL.items() if k != "patch_size"}, "token_chan": 4}
MODELS: dict[str, ViTConfig] = {
    **{
        block: ViTConfig(**SMALL, block=block, qk_norm=block != "res_post")
        for block in ("standard", "res_post", "parallel_things", "parallel_scaling", "diff", "diff_parallel_scaling")
    },
    "map pool, SwiGLU": ViTConfig(**SMALL, global_pool="map", class_token=False, mlp_layer="swiglu"),
    "T2T": T2TViTConfig(**T2T),
    "T2T performer": T2TViTConfig(**T2T, tokens_type="performer", token_num_heads=1),
    "lucidrains": LucidrainsViTConfig(**SMALL),
    "rope": RopeViTConfig(**SMALL),
    "beit": BeitConfig(**SMALL),
    "naflex": NaFlexViTConfig(**SMALL),
}


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_gets_the_models_value(name: str) -> None:
    policy = Precision(params=jnp.bfloat16, compute=jnp.float16, products=lax.Precision.HIGH)
    model = build_model(MODELS[name], precision=policy)
    seen = {}

    def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module = context.module
        if hasattr(module, "precision"):
            seen[module.path] = module.policy if module is model or not module.path else module.precision
        assert not module.path or not hasattr(module, "param_dtype")
        return call(*args, **kwargs)

    with nn.intercept_methods(look):
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.config.image_size, 1)))["params"]
    assert len(seen) > 5
    assert {path for path, value in seen.items() if value != policy} == set()
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(params)} == {"bfloat16"}


def test_the_models_own_fields_say_the_same() -> None:
    model = vit_flax.create_model("vit_tiny_patch16_224", dtype=jnp.bfloat16, precision=lax.Precision.HIGH)
    assert model.policy.compute == jnp.bfloat16
    assert model.policy.products == lax.Precision.HIGH
    assert model.clone(dtype=None).policy == Precision(products=lax.Precision.HIGH)
    assert model.clone(param_dtype=jnp.float16).policy.params == jnp.float16
    whole = model.clone(precision=Precision(params=jnp.float16, compute=jnp.float16))
    assert (whole.policy.params, whole.policy.compute) == (jnp.float16, jnp.bfloat16)


def test_bfloat16_is_stored_but_on_a_cpu() -> None:
    model = vit_flax.create_model("vit_tiny_patch16_224", dtype=jnp.bfloat16)
    for platform in (None, "tpu", "gpu", "cuda"):
        with compiled_for(platform):
            assert (model.policy.stored, model.policy.stream) == (jnp.bfloat16, None)
            assert model.clone(dtype=None).policy.stored is None
            assert model.clone(dtype="bfloat16").policy.stored == "bfloat16"
    with compiled_for("cpu"):
        assert model.clone(dtype="bfloat16").policy.stored is None
        assert model.policy == Precision(compute=jnp.bfloat16)
        assert model.clone(precision=Precision(stored=jnp.bfloat16)).policy.stored == jnp.bfloat16


def test_a_narrow_stream_does_not_round_what_is_stored_wider() -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 16)), jnp.bfloat16)
    for norm in (LayerNorm, RMSNorm):
        layer = norm(1e-6, Precision(stored=jnp.float32))
        params = layer.init(jax.random.key(0), x)
        found: Any = layer.apply(params, x)
        expected: Any = norm(1e-6).apply(params, x.astype(jnp.float32))
        np.testing.assert_allclose(found, expected, rtol=FLOAT32_RELATIVE)


def test_equal_dtypes_are_equal_however_they_are_written() -> None:
    assert Precision(compute=np.dtype("float64"), stored="float64").is_stored_as_computed
    assert Precision(compute="bfloat16", stored=jnp.bfloat16).is_stored_as_computed
    assert not Precision(compute=jnp.bfloat16).is_stored_as_computed
    assert not Precision(compute=jnp.float32, stored=jnp.bfloat16).is_stored_as_computed


def _loss_and_residuals(name: str, policy: Precision) -> tuple[Any, list[Any]]:
    """Returns the logits' shape and dtype, and the residuals of the backward pass other than parameters."""
    model = build_model(MODELS[name], precision=policy)
    images = jnp.zeros((3, *model.config.image_size, 1))
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    logits, pullback = jax.eval_shape(lambda p: jax.vjp(lambda p: model.apply({"params": p}, images), p), params)
    return logits, [leaf for leaf in jax.tree.leaves(pullback) if leaf.ndim > 2 and leaf.shape[0] == 3]


STORED = Precision(compute=jnp.bfloat16, stored=jnp.bfloat16)


@pytest.mark.parametrize("name", ["standard", "rope"])
def test_the_backward_pass_keeps_bfloat16_but_for_the_stream(name: str) -> None:
    config = MODELS[name]
    stream = (3, config.num_patches + config.num_prefix_tokens, config.embed_dim)

    def wide(policy: Precision) -> list[tuple[int, ...]]:
        logits, kept = _loss_and_residuals(name, policy)
        assert logits.dtype == jnp.float32
        return [leaf.shape for leaf in kept if leaf.dtype == jnp.float32 and leaf.shape[-1] > 1]

    found = wide(STORED)
    assert {shape for shape in found if shape[1:] != stream[1:]} == set()
    assert len(found) <= 2 * config.depth + 1  # what normalisation reads
    assert (3, stream[1], config.mlp_dim) in wide(Precision(compute=jnp.bfloat16))


FAST = ("standard", "rope")


@pytest.mark.parametrize(
    "name", [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in MODELS]
)
def test_gradients_are_near_float32s_whatever_is_stored(name: str) -> None:
    config = MODELS[name]
    images = jax.random.normal(jax.random.key(1), (3, *config.image_size, 1))
    params = build_model(config).init(jax.random.key(0), images)["params"]

    def answer(policy: Precision) -> Any:
        model = build_model(config, precision=policy)

        def loss(params: Any) -> Any:
            logits: Any = model.apply({"params": params}, images)
            return jnp.square(logits).sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    def error(policy: Precision) -> float:
        pairs = zip(jax.tree.leaves(answer(policy)), jax.tree.leaves(exact), strict=True)
        return float(sum(jnp.square(a - b).sum() for a, b in pairs) ** 0.5)

    exact = answer(Precision())
    assert error(STORED) <= 3 * error(Precision(compute=jnp.bfloat16))


# a policy, and where the machine that it is compiled for makes a difference, that machine
POLICIES = {
    "float32": (Precision(), None),
    "bfloat16 products": (Precision(compute=jnp.bfloat16), "cpu"),
    "bfloat16 stored, TPU": (STORED, "tpu"),
    "bfloat16 stored, GPU": (STORED, "gpu"),
    "bfloat16 stream": (dataclasses.replace(STORED, stream=jnp.bfloat16), None),
}


@pytest.fixture(scope="module")
def exact() -> tuple[Any, Any, Any]:
    """Returns images, parameters of size one in every layer, and the float64 results."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((8, *DEEP.image_size, 1))

    def random(path: Any, leaf: Any) -> Any:
        values, kind = rng.standard_normal(leaf.shape), path[-1].key
        by_kind = {"kernel": values / np.prod(leaf.shape[:-1]) ** 0.5, "scale": 1 + 0.1 * values}
        return by_kind.get(kind, 0.1 * values).astype(np.float32).astype(np.float64)

    with jax.enable_x64(True):
        model = build_model(DEEP)
        params = jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(images))["params"]
        params = jax.tree.map_with_path(random, params)
        return images, params, _answer(model, params, images)


DEEP = MODELS["standard"].replace(depth=3, embed_dim=32)


def _answer(model: Any, params: Any, images: Any) -> tuple[Any, Any]:
    def loss(params: Any) -> Any:
        logits: Any = model.apply({"params": params}, images)
        return jnp.square(logits).sum(), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradients)]
    return np.asarray(logits, np.float64), np.concatenate(leaves)


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_as_far_from_float64_as_its_roundings_say(name: str, exact: Any) -> None:
    images, params, right = exact
    policy, platform = POLICIES[name]
    backend = "stored" if platform == "tpu" else "auto"  # its kernel has a test of its own
    with jax.enable_x64(False), compiled_for(platform), attention_backend(backend):
        params, images = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (params, images))
        found = _answer(build_model(DEEP, precision=policy), params, images)
    allowed = policy_allowed(policy, DEEP.depth, DEEP.mlp_dim)
    for got, expected, factor in zip(found, right, (1.0, GRADIENT_FACTOR), strict=True):
        error = np.linalg.norm(got - expected) / np.linalg.norm(expected)
        assert allowed / 20 < error <= factor * allowed


def test_nothing_asks_the_host_what_it_is() -> None:
    models = Path(vit_flax.__file__).parent / "models"
    asking = re.compile(r"default_backend|device_count|jax\.(local_)?devices\(")
    found = [path.name for path in models.glob("*.py") if not path.stem.endswith("_test")]
    assert len(found) > 30
    assert [name for name in found if asking.search((models / name).read_text())] == []
