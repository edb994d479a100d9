"""The fence changes no value, exists on the CPU alone, and keeps the training step's fusions small."""

import re
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

import vit_flax
from vit_flax.models.fence import fence
from vit_flax.models.linear import matmul
from vit_flax.models.precision import HIGHEST

MOST_OPERANDS = 16  # a fusion that takes in the whole chain of residual gradients has hundreds


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("first", [0.0, -1.5, np.inf, -np.inf, np.nan])
def test_every_value_passes(dtype: str, first: float) -> None:
    x = jnp.array([first, 2.0, -3.0, np.nan, np.inf], dtype)
    np.testing.assert_array_equal(np.asarray(jax.jit(fence)(x, x), np.float32), np.asarray(x, np.float32))


def _lowered(platform: str) -> str:
    def loss(x: Any, kernel: Any) -> Any:
        y: Any = matmul(jnp.sin(x), kernel, jnp.float32, HIGHEST)
        return y.sum()

    shapes = (jax.ShapeDtypeStruct((2, 5, 8), jnp.float32), jax.ShapeDtypeStruct((8, 4), jnp.float32))
    return jax.export.export(jax.jit(jax.grad(loss, 1)), platforms=[platform])(*shapes).mlir_module()


def test_only_the_cpu_sees_it() -> None:
    assert "stablehlo.optimization_barrier" in _lowered("cpu")
    assert "stablehlo.optimization_barrier" not in _lowered("tpu")
    assert "stablehlo.optimization_barrier" not in _lowered("cuda")


def test_inference_has_none() -> None:
    def apply(x: Any, kernel: Any) -> Any:
        return matmul(x, kernel, jnp.float32, HIGHEST)

    assert "stablehlo.optimization_barrier" not in jax.jit(apply).lower(jnp.ones((2, 5, 8)), jnp.ones((8, 4))).as_text()


def _most_operands(compiled: str) -> int:
    fusions = re.findall(r" fusion\((.*?)\), kind=", compiled)
    assert fusions
    return max(len(re.findall(r"%[\w.\-]+", operands)) for operands in fusions)


def test_no_fusion_of_the_training_step_takes_in_the_residual_chain(users_compiler: dict[str, str | bool]) -> None:
    model = vit_flax.create_model(
        "vit_tiny_patch16_224", image_size=32, patch_size=8, embed_dim=32, num_heads=2, depth=8, num_classes=4
    )
    images = jnp.ones((2, 32, 32, 3))
    params = model.init(jax.random.key(0), images)["params"]

    def loss(params: Any, images: Any) -> Any:
        return jax.nn.logsumexp(model.apply({"params": params}, images), axis=-1).sum()  # pyright: ignore

    compiled = jax.jit(jax.grad(loss)).lower(params, images).compile(users_compiler).as_text() or ""
    assert " conditional(" in compiled, "the compiler sees through the fence"
    assert _most_operands(compiled) <= MOST_OPERANDS


def test_the_count_sees_a_fusion_that_takes_in_much(users_compiler: dict[str, str | bool]) -> None:
    def chain(*xs: Any) -> Any:
        total = xs[0]
        for x in xs[1:]:
            total = total + x
        return total

    xs = [jnp.ones((8, 8))] * 20
    compiled = jax.jit(lambda *xs: chain(*xs)).lower(*xs).compile(users_compiler)
    assert _most_operands(compiled.as_text() or "") > MOST_OPERANDS
