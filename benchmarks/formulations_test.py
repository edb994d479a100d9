"""The plain form of each timed formulation changes the program, and not the gradient."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.peers.formulations import PLAIN
from vit_flax import ViTConfig
from vit_flax.models import build_model
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE, FLOAT32_LOGITS

TINY = ViTConfig(image_size=(8, 8), patch_size=(4, 4), embed_dim=8, depth=1, num_heads=2, num_classes=3)


def _traced() -> tuple[Any, Any]:
    """Returns the gradient of a small model's loss, traced anew, and the parameters it takes."""
    model = build_model(TINY)
    images = jnp.asarray(np.random.default_rng(0).standard_normal((2, 8, 8, 3), np.float32))
    params = jax.jit(model.init)(jax.random.key(1), images)["params"]

    def loss(params: Any) -> Any:
        logits: Any = model.apply({"params": params}, images)
        return jnp.square(logits - 1).sum()

    return jax.jit(jax.grad(loss)).trace(params), params


@pytest.mark.parametrize("part", PLAIN)
def test_a_plain_part_changes_the_program_and_not_the_gradient(part: str) -> None:
    ours, params = _traced()
    with PLAIN[part]():
        plain, _ = _traced()
    assert str(plain.jaxpr) != str(ours.jaxpr)
    expected, got = (traced.lower().compile()(params) for traced in (ours, plain))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=FLOAT32_LOGITS["rtol"], atol=FLOAT32_ABSOLUTE),
        got,
        expected,
    )
    assert str(_traced()[0].jaxpr) == str(ours.jaxpr)  # restored afterwards
