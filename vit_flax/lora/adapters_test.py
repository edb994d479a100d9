"""Initial adapters, and adapters merged into kernels."""

from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vit_flax.lora.adapters import begin, merged
from vit_flax.lora.config import LoraConfig
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE, FLOAT32_RELATIVE, FLOAT32_ROUNDING

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


PARAMS = {
    "patch_embed": {"proj": {"kernel": normal(2, 2, 3, 4)}},
    "blocks_0": {"attn": {"qkv": {"kernel": normal(4, 12), "bias": normal(12)}}},
    "head": {"kernel": normal(4, 3), "bias": normal(3)},
}


def flat_of(tree: Any) -> dict[str, Any]:
    return flatten_dict(tree, sep="/")  # pyright: ignore[reportReturnType]


def random_like(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: normal(*leaf.shape), tree)


def test_at_the_beginning_the_model_is_as_it_was() -> None:
    config = LoraConfig(targets=("q", "v", "patch_embed/proj"), rank=2, bias="lora_only")
    trained, frozen = begin(jax.random.key(0), PARAMS, config)
    flat = flat_of(trained)
    assert set(flat) == {
        *(f"blocks_0/attn/{part}/{leaf}" for part in "qv" for leaf in ("lora_a", "lora_b", "bias")),
        "patch_embed/proj/lora_a", "patch_embed/proj/lora_b", "head/kernel", "head/bias",
    }  # fmt: skip
    assert np.abs(flat["blocks_0/attn/q/lora_a"]).max() <= 1 / 2
    assert not np.array_equal(flat["blocks_0/attn/q/lora_a"], flat["blocks_0/attn/v/lora_a"])
    assert "head" not in frozen
    jax.tree.map(np.testing.assert_array_equal, merged(frozen, trained, config), PARAMS)


@pytest.mark.parametrize("rslora", [False, True])
def test_products_are_added_to_the_columns_of_their_part(rslora: bool) -> None:
    config = LoraConfig(targets=("q", "kv", "patch_embed/proj"), rank=2, alpha=3, rslora=rslora, bias="lora_only",
                        ranks=(("kv", 1),), alphas=(("attn/q", 5),))  # fmt: skip
    trained, frozen = begin(jax.random.key(0), PARAMS, config)
    trained = random_like(trained)
    found = merged(frozen, trained, config)
    own = flat_of(trained)
    change = found["blocks_0"]["attn"]["qkv"]["kernel"] - PARAMS["blocks_0"]["attn"]["qkv"]["kernel"]
    root = np.sqrt(2) if rslora else 2
    q, kv = (own[f"blocks_0/attn/{part}/lora_a"] @ own[f"blocks_0/attn/{part}/lora_b"] for part in ("q", "kv"))
    np.testing.assert_allclose(change[:, :4], q * 5 / root, rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)
    np.testing.assert_allclose(change[:, 4:], kv * 3, rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)
    bias = found["blocks_0"]["attn"]["qkv"]["bias"]
    np.testing.assert_allclose(bias[:4], own["blocks_0/attn/q/bias"], rtol=FLOAT32_ROUNDING)
    np.testing.assert_allclose(bias[4:], own["blocks_0/attn/kv/bias"], rtol=FLOAT32_ROUNDING)
    a, b = own["patch_embed/proj/lora_a"], own["patch_embed/proj/lora_b"]
    patch = found["patch_embed"]["proj"]["kernel"] - PARAMS["patch_embed"]["proj"]["kernel"]
    np.testing.assert_allclose(
        patch, np.einsum("hwcr,ro->hwco", a, b) * 3 / root, rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE
    )
