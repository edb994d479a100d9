"""Blocks that take a part of the images after the other compute what they compute of all at once."""

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from vit_flax.chips import CHIPS
from vit_flax.config import RopeViTConfig, ViTConfig
from vit_flax.models import build_model, image_parts
from vit_flax.models.attention import WEIGHTS
from vit_flax.models.image_parts import count_parts, join, split
from vit_flax.models.kernel_sharding import sharded_kernels
from vit_flax.models.precision import compiled_for
from vit_flax.parity.tolerances import FLOAT32_GRADIENT, FLOAT32_RELATIVE

SMALL: dict[str, Any] = {
    "image_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 5, "in_chans": 1,
}  # fmt: skip
IMAGES = jnp.asarray(np.random.default_rng(0).standard_normal((4, 8, 8, 1)), jnp.float32)
V6E = "TPU v6 lite"


@contextmanager
def small_memory(size: int, devices: int = 1) -> Iterator[None]:
    """Compiles for TPUs whose fast memory is of that size."""
    chip = dataclasses.replace(CHIPS["v6e"], fast_memory=size)
    with (
        mock.patch.multiple(image_parts, chip_of_kind=lambda kind: chip, _LEAST_MEMORY=0),
        compiled_for("tpu", devices, V6E),
    ):
        yield


def loss_of(model: Any) -> Callable[[Any], Any]:
    """Returns a loss of the parameters."""
    return lambda params: jnp.square(model.apply({"params": params}, IMAGES)).mean()


def products(function: Any, *args: Any) -> int:
    """Returns how many products a function's program has."""
    return str(jax.make_jaxpr(function)(*args)).count("dot_general")


@pytest.mark.parametrize(("remat", "scan"), [("none", False), ("full", False), ("none", True)])
def test_parts_compute_the_same(remat: str, scan: bool) -> None:
    model = build_model(ViTConfig(**SMALL), remat=remat, scan=scan)
    params = model.init(jax.random.key(0), IMAGES)["params"]
    asked: Any = {"indices": [0, 2], "method": "forward_intermediates"}

    def both(params: Any) -> Any:
        return model.apply({"params": params}, IMAGES, **asked), model.apply({"params": params}, IMAGES)

    loss = loss_of(model)
    expected, gradients = jax.jit(both)(params), jax.jit(jax.grad(loss))(params)
    whole, whole_gradient = products(both, params), products(jax.grad(loss), params)
    with small_memory(12_000):
        assert products(both, params) > 2 * whole, "all images at once"
        got = jax.jit(both)(params)
        # for a backward pass they are taken all at once
        assert products(jax.grad(loss), params) == whole_gradient
        got_gradients = jax.jit(jax.grad(loss))(params)
    for value, other in zip(jax.tree.leaves(expected), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(other, value, rtol=FLOAT32_RELATIVE, atol=FLOAT32_RELATIVE)
    for value, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(got_gradients), strict=True):
        np.testing.assert_allclose(other, value, **FLOAT32_GRADIENT)


def test_attention_is_written_down_of_all_images() -> None:
    model = build_model(ViTConfig(**SMALL))
    params = model.init(jax.random.key(0), IMAGES)["params"]
    with small_memory(12_000):
        _, found = model.apply({"params": params}, IMAGES, mutable=[WEIGHTS])
    assert {leaf.shape for leaf in jax.tree.leaves(found)} == {(4, 2, 5, 5)}


def test_blocks_that_are_told_what_is_learned_of_positions_take_all_images() -> None:
    mixed: Any = {"rope_type": "mixed", "rope_rotate_half": False, "rope_theta": 10.0}
    model = build_model(RopeViTConfig(**{**SMALL, "depth": 1}, **mixed))
    params = model.init(jax.random.key(0), IMAGES)["params"]

    loss = loss_of(model)
    expected = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    with small_memory(12_000):
        got = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
    for value, other in zip(expected, got, strict=True):
        np.testing.assert_allclose(other, value, **FLOAT32_GRADIENT)


# parts of ViT-S, B and L at 224 in bfloat16, by batch: few images fit, of very many not even an eighth does
@pytest.mark.parametrize(
    ("batch", "width", "parts"),
    [(8, 1536, 1), (64, 1536, 4), (64, 3072, 8), (32, 4096, 4), (31, 4096, 1), (256, 3072, 1), (1, 4096, 1)],
)
def test_the_number_of_parts(batch: int, width: int, parts: int) -> None:
    tokens: Any = jnp.zeros((batch, 197, 1))
    with compiled_for("tpu", kind=V6E):
        assert count_parts(tokens, width, 2) == parts
    for machine in (("cpu", 1, ""), ("gpu", 1, "NVIDIA H100 80GB HBM3"), ("tpu", 1, "unknown"), ("tpu", 1, "TPU v5p"),
                    ("tpu", 8, V6E)):  # fmt: skip
        with compiled_for(*machine):
            assert count_parts(tokens, width, 2) == 1, machine


def test_each_device_has_its_share_of_every_part() -> None:
    mesh = AbstractMesh((2, 2, 1), ("data", "fsdp", "model"))
    tokens = jnp.arange(16).reshape(16, 1, 1)
    with sharded_kernels(mesh, ("data", "fsdp"), "model"):
        parts = split(tokens, 2)
        assert parts[0].ravel().tolist() == [0, 1, 4, 5, 8, 9, 12, 13]
        assert join(parts).tolist() == tokens.tolist()
        with compiled_for("tpu", 4, V6E):
            assert count_parts(jnp.zeros((128, 197, 1)), 4096, 2) == 4  # 32 a device
            assert count_parts(jnp.zeros((130, 197, 1)), 4096, 2) == 1  # which the mesh does not divide


def test_four_devices_send_nothing_to_each_other() -> None:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def _compare_on_devices() -> None:
    model, images = build_model(ViTConfig(**SMALL), scan=True), jnp.concatenate([IMAGES + i for i in range(4)])
    params = model.init(jax.random.key(0), images)["params"]
    mesh = jax.make_mesh((2, 2, 1), ("data", "fsdp", "tensor"))
    placed = [
        jax.device_put(x, NamedSharding(mesh, spec))
        for x, spec in ((params, PartitionSpec()), (images, PartitionSpec(("data", "fsdp"))))
    ]

    def logits(params: Any, images: Any) -> Any:
        return model.apply({"params": params}, images)

    expected = logits(params, images)
    whole = products(logits, params, images)
    with small_memory(12_000, 4), sharded_kernels(mesh, ("data", "fsdp"), "tensor"):
        assert products(logits, params, images) > 2 * whole
        compiled = jax.jit(logits).lower(*placed).compile()
    assert not re.findall("all-gather|all-reduce|all-to-all|collective-permute", str(compiled.as_text()))
    np.testing.assert_allclose(compiled(*placed), expected, rtol=FLOAT32_RELATIVE, atol=FLOAT32_RELATIVE)


if __name__ == "__main__":
    _compare_on_devices()
