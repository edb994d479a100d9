"""Each formulation that is timed against its plain form is really put back, and computes the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.peers.formulations import PLAIN
from vit_flax import ViTConfig
from vit_flax.models import build_model

TINY = ViTConfig(image_size=(8, 8), patch_size=(4, 4), embed_dim=8, depth=1, num_heads=2, num_classes=3)


def _gradient() -> tuple[Any, str]:
    model = build_model(TINY)
    images = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    params = model.init(jax.random.key(1), images)["params"]

    def loss(params: Any) -> Any:
        logits: Any = model.apply({"params": params}, images)
        return jnp.square(logits - 1).sum()

    return jax.grad(loss)(params), str(jax.make_jaxpr(jax.grad(loss))(params))


@pytest.mark.parametrize("part", PLAIN)
def test_a_plain_part_changes_the_program_and_not_the_gradient(part: str) -> None:
    expected, program = _gradient()
    with PLAIN[part]():
        got, plain = _gradient()
    assert plain != program
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, expected)
    assert _gradient()[1] == program  # and is back afterwards
