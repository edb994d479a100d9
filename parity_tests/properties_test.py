"""Random shapes: Flax computes what the reference accepts, and refuses what it refuses."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from parity_tests.random_weights import randomise
from vit_flax import from_state_dict, to_state_dict
from vit_flax.models import PatchEmbed
from vit_flax.parity.compare import compare_arrays
from vit_flax.reference import T2T_ViT, ViT_Model

SETTINGS = settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
ACTIVATIONS = {"gelu": nn.GELU, "silu": nn.SiLU, "elu": nn.ELU, "tanhshrink": nn.Tanhshrink}


def _agree(module: nn.Module, size: tuple[int, int, int], batch: int, **overrides: Any) -> None:
    randomise(module)
    tensors = module.state_dict()
    model, params = from_state_dict(tensors, image_size=size[1:], **overrides)
    images = torch.randn(batch, *size, dtype=torch.float64)
    theirs = module(images).detach().numpy()
    ours = np.asarray(jax.jit(model.apply)({"params": params}, images.numpy().transpose(0, 2, 3, 1)))
    row = compare_arrays("output", "output", theirs, ours)
    assert row.agrees, row
    back = to_state_dict(model, params)
    assert all(back[name].tobytes() == tensor.numpy().tobytes() for name, tensor in tensors.items())


@SETTINGS
@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    patch=st.integers(1, 5),
    chans=st.integers(1, 4),
    heads=st.sampled_from([1, 2, 3]),
    head_dim=st.integers(1, 6),
    preds=st.integers(1, 5),
    bias=st.booleans(),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    batch=st.integers(1, 3),
)
def test_any_vit(
    rows: int, columns: int, patch: int, chans: int, heads: int, head_dim: int, preds: int, bias: bool, activation: str,
    batch: int,
) -> None:  # fmt: skip
    size = (chans, rows * patch, columns * patch)
    width = heads * head_dim
    module = ViT_Model(size, patch, width, preds, heads, 2.0, 1, bias, None, ACTIVATIONS[activation])
    _agree(module, size, batch, num_heads=heads, activation=activation)


@settings(SETTINGS, max_examples=6)
@given(
    height=st.integers(12, 30),
    width=st.integers(12, 30),
    kernels=st.tuples(st.integers(2, 9), st.integers(2, 4), st.integers(1, 4)),
    chans=st.integers(1, 3),
)
def test_any_t2t_vit(height: int, width: int, kernels: tuple[int, int, int], chans: int) -> None:
    size = (chans, height, width)
    module = T2T_ViT(size, kernels, 2, 16, 8, 2, depth=1)
    _agree(module, size, 2, num_heads=2, softsplit_kernels=kernels)


@SETTINGS
@given(height=st.integers(1, 40), width=st.integers(1, 40), patch=st.integers(1, 12))
def test_both_refuse_what_does_not_divide(height: int, width: int, patch: int) -> None:
    images = jnp.zeros((1, height, width, 1))
    module = PatchEmbed((height, width), (patch, patch), 4, 1)
    params = {"params": {"proj": {"kernel": np.zeros((patch, patch, 1, 4)), "bias": np.zeros(4)}}}
    if height % patch == 0 and width % patch == 0:
        tokens = module.apply(params, images)
        assert (
            np.asarray(tokens).shape[1] == ViT_Model((1, height, width), patch, 4, 1, depth=1).patch_tokens.num_tokens
        )
        return
    side = "height" if height % patch else "width"
    with pytest.raises(ValueError, match=f"{side} {height if height % patch else width}.*{patch}"):
        module.apply(params, images)
    with pytest.raises(ValueError, match=str(patch)):
        ViT_Model((1, height, width), patch, 4, 1, depth=1)
