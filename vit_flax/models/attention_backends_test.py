"""Every attention back end computes softmax attention, or refuses."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from vit_flax.config import BeitConfig, NaFlexViTConfig, ViTConfig
from vit_flax.models import build_model
from vit_flax.models.attention_backends import BACKENDS, attention_backend, dot_product_attention
from vit_flax.models.precision import HIGHEST, Precision
from vit_flax.models.softmax_attention import late_attention, plain_attention
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE, FLOAT32_LIBRARIES, FLOAT32_RELATIVE, FLOAT64_RELATIVE, rounding
from vit_flax.train.config.run import ATTENTION_BACKENDS

SMALL: dict[str, Any] = {
    "image_size": 12, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 5, "in_chans": 1,
}  # fmt: skip
MODELS: dict[str, ViTConfig] = {
    "class token": ViTConfig(**SMALL, qk_scale=0.7),
    "a bias": BeitConfig(**SMALL),
    "hidden keys": NaFlexViTConfig(**SMALL),
    "values wider than keys, one query": ViTConfig(**SMALL, block="diff", global_pool="map", class_token=False),
}


@cache
def _gradients(config: ViTConfig, backend: str, dtype: str) -> Any:
    """Returns the logits and the gradients of a loss with respect to parameters and images, all of them random."""
    rng = np.random.default_rng(0)
    model = build_model(config, param_dtype=dtype)
    images = jnp.asarray(rng.standard_normal((2, *config.image_size, 1)), dtype)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.standard_normal(leaf.shape), dtype), shapes)
    weights = jnp.asarray(rng.standard_normal((2, 5)), dtype)

    def loss(params: Any, images: Any) -> Any:
        logits: Any = model.apply({"params": params}, images)
        return (weights * logits).sum(), logits

    with attention_backend(backend):
        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, images)


def _assert_agree(config: ViTConfig, backend: str, dtype: str) -> None:
    with jax.enable_x64(True):
        expected = _gradients(config, "plain", "float64")
    with jax.enable_x64(dtype == "float64"):
        got = _gradients(config, backend, dtype)
    tolerance = FLOAT64_RELATIVE if dtype == "float64" else FLOAT32_LIBRARIES["rtol"]
    for (path, value), other in zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(got), strict=True):
        assert value.dtype == "float64"
        assert other.dtype == dtype
        size = np.abs(value).max()
        np.testing.assert_allclose(other, value, rtol=0, atol=tolerance * size, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_the_textbooks(name: str) -> None:
    _assert_agree(MODELS[name], "xla", "float64")


@pytest.mark.parametrize("name", ["a bias", "values wider than keys, one query"])
def test_those_of_jax_are(name: str) -> None:
    _assert_agree(MODELS[name], "jax_nn", "float32")


@pytest.mark.parametrize(
    "name", ["class token", pytest.param("values wider than keys, one query", marks=pytest.mark.slow)]
)
def test_the_tpu_kernel_interpreted(name: str) -> None:
    with pltpu.force_tpu_interpret_mode():
        _assert_agree(MODELS[name], "splash", "float32")


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs an NVIDIA GPU")
def test_cudnn() -> None:
    heads = [jnp.asarray(np.random.default_rng(i).standard_normal((2, 3, 17, 64)), jnp.bfloat16) for i in range(3)]

    def loss(q: Any, k: Any, v: Any) -> Any:
        return jnp.square(dot_product_attention(q, k, v, 0.125, Precision())).sum()

    results = []
    for backend in ("plain", "cudnn"):
        with attention_backend(backend):
            results.append(jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(*heads))
    for value, other in zip(*map(jax.tree.leaves, results), strict=True):
        value, other = (np.asarray(x, np.float32) for x in (value, other))
        # a dozen roundings: of logits, weights, values, their mix and of each of their gradients
        np.testing.assert_allclose(other, value, atol=12 * rounding(jnp.bfloat16) * np.abs(value).max())


def _scale_dropped(q: Any, k: Any, v: Any, scale: float, precision: Any, bias: Any = None) -> Any:
    return late_attention(q, k, v, 1.0, precision, bias)


def _bias_dropped(q: Any, k: Any, v: Any, scale: float, precision: Any, bias: Any = None) -> Any:
    return late_attention(q, k, v, scale, precision, None)


def _no_gradient_to_keys(q: Any, k: Any, v: Any, scale: float, precision: Any, bias: Any = None) -> Any:
    return late_attention(q, jax.lax.stop_gradient(k), v, scale, precision, bias)


@pytest.mark.parametrize(
    ("mutant", "model"),
    [(_scale_dropped, "class token"), (_bias_dropped, "a bias"), (_no_gradient_to_keys, "class token")],
)
def test_a_wrong_back_end_is_caught(mutant: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, mutant.__name__, mutant)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        _assert_agree(MODELS[model], mutant.__name__, "float64")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("backend", ["xla", "jax_nn", "splash"])
def test_infinities_and_nan_go_where_the_textbooks_do(backend: str, value: float) -> None:
    rng = np.random.default_rng(0)
    heads = rng.standard_normal((3, 3, 2, 5, 8)).astype(np.float32)
    for part in range(3):  # one in the first image's queries, the second's keys and the third's values
        heads[part, part, 1, 2, 3] = value
    q, k, v = map(jnp.asarray, heads)
    expected = np.asarray(plain_attention(q, k, v, 0.3, HIGHEST))
    assert not np.isfinite(expected).all((1, 2, 3)).any()
    with attention_backend(backend), pltpu.force_tpu_interpret_mode():
        np.testing.assert_allclose(
            dot_product_attention(q, k, v, 0.3, Precision()), expected, rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE
        )


def test_another_back_end_is_traced_anew() -> None:
    traced = []

    @jax.jit
    def mix(q: Any) -> Any:
        traced.append(q)
        return dot_product_attention(q, q, q, 0.5, Precision())

    q = jnp.ones((1, 1, 3, 4))
    texts = []
    for name in ("xla", "plain", "xla"):
        with attention_backend(name):
            mix(q)
            texts.append(mix.lower(q).as_text())
    mix(q)
    assert len(traced) == 3  # xla, plain, and the default, which is not called xla
    assert texts[0] == texts[2] != texts[1]


def test_names() -> None:
    assert tuple(BACKENDS) == ATTENTION_BACKENDS
    with pytest.raises(ValueError, match="unknown attention back end 'flash'; there are auto, xla, stored, rows, "):
        attention_backend("flash")


def test_what_a_back_end_cannot_do_is_refused_and_auto_refuses_nothing() -> None:
    def mix(backend: str, dtype: Any, bias: Any = None) -> Any:
        q = jnp.ones((2, 1, 3, 4), dtype)
        with attention_backend(backend):
            return dot_product_attention(q, q, q, 0.5, Precision(), bias)

    bias = jnp.zeros((1, 1, 3, 3))
    with jax.enable_x64(True):
        for dtype in ("float16", "bfloat16", "float32", "float64"):
            assert mix("auto", dtype, bias).dtype == ("float64" if dtype == "float64" else "float32")
        with pytest.raises(
            ValueError, match=r"'jax_nn' cannot compute heads \(2, 1, 3, 4\) of float64: its softmax is"
        ):
            mix("jax_nn", "float64")
    if jax.default_backend() == "cpu":
        with pytest.raises(ValueError, match=r"needs an NVIDIA GPU.*choose another with attention_backend"):
            mix("cudnn", "bfloat16")
    with pytest.raises(ValueError, match=r"'splash' cannot .* adds no bias"):
        mix("splash", "float32", bias)
    with pytest.raises(ValueError, match=r"'splash' cannot .* float32 and bfloat16 alone"):
        mix("splash", "float16")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "width"), [(jnp.bfloat16, 768), (None, 64)], ids=["bfloat16", "float32"])
def test_the_tpu_kernel_compiles_for_a_tpu(dtype: Any, width: int) -> None:
    from vit_flax.plan import topology_devices

    [device] = topology_devices("v5e:1x1")
    here = jax.sharding.SingleDeviceSharding(device)
    model = build_model(ViTConfig(depth=1, embed_dim=width, num_heads=width // 64), dtype=dtype)
    images = jax.ShapeDtypeStruct((8, 224, 224, 3), jnp.float32, sharding=here)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), params)

    def loss(params: Any, images: Any) -> Any:
        return jnp.square(model.apply({"params": params}, images)).mean()  # pyright: ignore

    with attention_backend("splash"):
        text = jax.jit(jax.grad(loss)).lower(params, images).compile().as_text() or ""
    assert text.count('custom_call_target="tpu_custom_call"') == 2  # forward and backward


def test_bfloat16_gradients_are_as_near_to_float32_as_the_plain_form() -> None:
    rng = np.random.default_rng(0)
    wide = [jnp.asarray(rng.standard_normal((2, 3, 17, 8)), jnp.float32) for _ in range(4)]

    def gradients(backend: str, dtype: Any) -> Any:
        *heads, g = (x.astype(dtype) for x in wide)

        def loss(q: Any, k: Any, v: Any) -> Any:
            return (dot_product_attention(q, k, v, 8**-0.5, Precision(products=None)) * g).sum()

        with attention_backend(backend):
            return jax.jit(jax.grad(loss, (0, 1, 2)))(*heads)

    exact, plain, ours = (
        gradients("plain", jnp.float32),
        gradients("plain", jnp.bfloat16),
        gradients("xla", jnp.bfloat16),
    )
    for name, right, theirs, own in zip("qkv", exact, plain, ours, strict=True):
        assert own.dtype == jnp.bfloat16
        error, allowed = (float(jnp.linalg.norm(x.astype(jnp.float32) - right)) for x in (own, theirs))
        assert error < 1.5 * allowed, name
