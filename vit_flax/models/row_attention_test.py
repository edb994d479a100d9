"""The kernel over whole rows of logits, interpreted on the CPU, and compiled for a TPU."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.sharding import Mesh

from vit_flax.config import ViTConfig
from vit_flax.models import build_model
from vit_flax.models.attention_backends import attention_backend, backend_for
from vit_flax.models.kernel_sharding import sharded_kernels
from vit_flax.models.precision import HIGHEST, Precision, compiled_for
from vit_flax.models.qkv import merge_heads, split_qkv
from vit_flax.models.row_attention import fast_memory, row_attention
from vit_flax.models.softmax_attention import plain_attention
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE, FLOAT32_GRADIENT, FLOAT32_RELATIVE

BFLOAT16 = Precision(compute=jnp.bfloat16, stored=jnp.bfloat16)


@pytest.fixture(autouse=True)
def _float32() -> Iterator[None]:
    """Other files' tests may have turned 64-bit mode on, which no TPU computes in."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", False)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    # as XLA computes it: ten times as fast as the TPU's interpreter
    monkeypatch.setattr(pl, "pallas_call", partial(pl.pallas_call, interpret=True))


def _textbook(qkv: Any, heads: int) -> Any:
    q, k, v = split_qkv(qkv, heads)
    return merge_heads(plain_attention(q, k, v, 0.3, HIGHEST))


# one column of heads, a loop over two columns of two, and heads that fill no whole lanes
@pytest.mark.parametrize(("heads", "size", "count"), [(2, 8, 1), (4, 64, 3), (3, 64, 1)])
@pytest.mark.usefixtures("interpreted")
def test_outputs_and_gradients_are_the_textbooks(heads: int, size: int, count: int) -> None:
    rng = np.random.default_rng(0)
    qkv = jnp.asarray(rng.standard_normal((2, 5, 3 * heads * size)) / size**0.25, jnp.float32)
    g = jnp.asarray(rng.standard_normal((2, 5, heads * size)), jnp.float32)

    def ours(qkv: Any) -> Any:
        return row_attention(jnp.split(qkv, count, axis=-1), heads, 0.3, HIGHEST)

    def both(function: Any) -> Any:
        out, pullback = jax.vjp(function, qkv)
        return out, pullback(g)[0]

    expected, got = (jax.jit(partial(both, f))() for f in (partial(_textbook, heads=heads), ours))
    np.testing.assert_allclose(got[0], expected[0], rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)
    np.testing.assert_allclose(got[1], expected[1], **FLOAT32_GRADIENT)


@pytest.mark.parametrize("fields", [{}, {"qk_norm": True}, {"value_skip": True, "key_bias": False}], ids=str)
@pytest.mark.usefixtures("interpreted")
def test_a_model_takes_the_kernel_where_it_stores_what_is_multiplied(fields: dict[str, Any]) -> None:
    config = ViTConfig(image_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=5, **fields)
    model = build_model(config, precision=Precision(stored=jnp.float32))
    images = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda leaf: leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params)

    def answer(backend: str) -> Any:
        def loss(params: Any) -> Any:
            logits: Any = model.apply({"params": params}, images)
            return jnp.square(logits).sum()

        with attention_backend(backend):
            assert ("pallas_call" in str(jax.make_jaxpr(loss)(params))) == (backend == "rows")
            return jax.jit(jax.value_and_grad(loss))(params)

    right = jax.tree.leaves(answer("plain"))
    largest = max(float(jnp.abs(leaf).max()) for leaf in right[1:])
    for expected, got in zip(right, jax.tree.leaves(answer("rows")), strict=True):
        np.testing.assert_allclose(got, expected, rtol=FLOAT32_GRADIENT["rtol"], atol=FLOAT32_RELATIVE * largest)


def test_when_it_is_chosen() -> None:
    def chosen(tokens: int, width: int = 64, is_plain: bool = True, policy: Precision = BFLOAT16) -> str:
        return backend_for((2, 4, tokens, width), jnp.bfloat16, policy, is_plain)

    with compiled_for("tpu", kind="TPU v5 lite"):
        assert [chosen(tokens) for tokens in (5, 197, 257, 577, 1025, 1370)] == ["rows"] * 6
        assert chosen(4097) == "splash"
        assert chosen(197, is_plain=False) == chosen(197, width=20) == "stored"
        assert chosen(197, policy=Precision(compute=jnp.bfloat16)) == "xla"
    for kind in ("", "TPU v4"):  # 16 MiB of fast memory
        with compiled_for("tpu", kind=kind):
            assert [chosen(tokens) for tokens in (197, 257, 1025)] == ["rows", "rows", "splash"]
    for machine in (("tpu", 4), ("gpu", 1), (None, 1)):
        with compiled_for(*machine):
            assert chosen(197) == "stored"
    mesh = Mesh(np.array(jax.devices("cpu")[:1]).reshape(1, 1), ("data", "tensor"))
    with compiled_for("tpu", 4), sharded_kernels(mesh, ("data",), "tensor"):
        assert chosen(197) == "rows"


def test_heads_that_fill_lanes_together_are_held_together() -> None:
    # what libtpu 0.0.52 takes forward for 16 heads, eight of which fill whole lanes; 54.4 MiB were asked for once
    assert fast_memory(1370, 4 * 1280, 16, 80, 2, is_forward=True) >= 68.28 * 2**20
    for width, taken in ((72, 80.51), (80, 56.36), (88, 89.82)):
        assert fast_memory(1025, 4 * 16 * width, 16, width, 2, is_forward=True) >= taken * 2**20
    assert fast_memory(1370, 7 * 16 * 128, 16, 128, 2) >= 91.27 * 2**20  # backward, a head to a column
    with compiled_for("tpu", kind="TPU v5 lite"):
        chosen = [backend_for((2, 16, 1370, width), jnp.bfloat16, BFLOAT16, True) for width in (64, 80, 88, 128)]
    assert chosen == ["rows", "rows", "splash", "rows"]


def test_what_it_cannot_compute() -> None:
    with pytest.raises(NotImplementedError, match="float32 and bfloat16 alone"):
        row_attention([jnp.zeros((1, 2, 24), jnp.float16)], 2, 1.0, None)
    with pytest.raises(NotImplementedError, match="of one shape"):
        row_attention([jnp.zeros((1, 2, 8)), jnp.zeros((1, 3, 8)), jnp.zeros((1, 3, 8))], 2, 1.0, None)


@pytest.mark.parametrize("backend", ["rows", "splash"])
def test_another_machine_is_refused_in_one_line(backend: str) -> None:
    config = ViTConfig(image_size=8, patch_size=4, embed_dim=16, depth=1, num_heads=2, num_classes=5)
    model = build_model(config, dtype=jnp.bfloat16)
    images = jnp.zeros((1, 8, 8, 3))
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    for platform in ("cpu", "gpu"):
        with (
            compiled_for(platform),
            attention_backend(backend),
            pytest.raises(ValueError, match=f"for TPUs, and this program for a {platform}; choose another"),
        ):
            jax.eval_shape(lambda params: model.apply({"params": params}, images), params)


@pytest.mark.parametrize(("kernel", "is_wide"), [("rows", False), ("rows", True), ("splash", True)])
def test_it_compiles_for_a_tpu(kernel: str, is_wide: bool) -> None:
    pytest.importorskip("libtpu", reason="no TPU compiler for this platform")
    from vit_flax.models.splash import splash_attention
    from vit_flax.plan import topology_devices

    here = jax.sharding.SingleDeviceSharding(topology_devices("v5e:1x1")[0])
    qkv = jax.ShapeDtypeStruct((8, 197, 3 * 192), jnp.bfloat16, sharding=here)

    def squares(qkv: Any) -> Any:
        if kernel == "rows":
            return jnp.square(row_attention([qkv], 3, 0.125, None)).sum()
        q, k, v = split_qkv(qkv, 3)
        return jnp.square(splash_attention(q, k, v, 0.125, None)).sum()

    with jax.enable_x64(is_wide):  # the other JAX mode, in which places in memory are 64-bit numbers
        text = jax.jit(jax.grad(squares)).lower(qkv).compile().as_text() or ""
    assert text.count('custom_call_target="tpu_custom_call"') == 2  # forward and backward
    assert "197,197" not in text
