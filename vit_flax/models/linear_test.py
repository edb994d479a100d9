"""Where gradients meet a barrier: on a GPU everywhere, on a TPU where those of a block stay on the chip."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from vit_flax.models.linear import stored_linear
from vit_flax.models.precision import HIGHEST, compiled_for

V5E = "TPU v5 lite"


@pytest.mark.parametrize(
    ("platform", "kind", "devices", "batch", "width", "has_barrier"),
    [
        ("tpu", V5E, 1, 64, 384, True),  # ViT-S: in it 5.6 GB through the memory of a training step are 4.2
        ("tpu", V5E, 1, 64, 768, False),
        ("tpu", V5E, 1, 32, 1024, False),  # four blocks of ViT-L: 3.7 GB would be 3.8
        ("tpu", V5E, 4, 256, 384, True),
        ("tpu", "", 1, 64, 384, False),  # a chip that is not known
        ("gpu", "NVIDIA H100 80GB HBM3", 1, 64, 768, True),
    ],
)
@pytest.mark.parametrize("wider", [False, True])
def test_a_barrier_where_gradients_stay_on_the_chip(
    platform: str, kind: str, devices: int, batch: int, width: int, has_barrier: bool, wider: bool
) -> None:
    inputs, outputs = (width, 4 * width) if wider else (4 * width, width)
    x = jax.ShapeDtypeStruct((batch, 197, inputs), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((inputs, outputs), jnp.float32)
    bias = jax.ShapeDtypeStruct((outputs,), jnp.float32)

    def loss(x: Any, kernel: Any, bias: Any) -> Any:
        return stored_linear(x, kernel, bias, jnp.bfloat16, HIGHEST).astype(jnp.float32).sum()

    with compiled_for(platform, devices, kind):
        text = str(jax.make_jaxpr(jax.grad(loss, (0, 1, 2)))(x, kernel, bias))
    assert ("optimization_barrier" in text) == has_barrier
