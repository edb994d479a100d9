"""Every elementwise activation of torch without arguments: values and gradients, kinks and far ends included."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from vit_flax.models.activations import ACTIVATIONS
from vit_flax.parity.tolerances import ACTIVATION_GRADIENT_SPACINGS, ACTIVATION_SPACINGS, FLOAT64_ROUNDING

# Not elementwise, or with parameters, or without defaults.
NOT_OURS = {"GLU", "MultiheadAttention", "PReLU", "Softmax", "Softmax2d", "Softmin", "LogSoftmax", "Threshold"}
TORCH = {name.lower(): getattr(nn, name) for name in nn.modules.activation.__all__ if name not in NOT_OURS}

POINTS = np.concatenate(
    [np.linspace(-12, 12, 2001), np.linspace(-40, 40, 81), [0.0, -0.0, 0.5, -0.5, 1, -1, 3, -3, 6, 20, 20.5, -100, 100]]
)


def test_every_torch_activation_has_its_twin() -> None:
    assert set(TORCH) <= set(ACTIVATIONS)
    for name in NOT_OURS:  # a new class of torch's shows up here
        assert inspect.isclass(getattr(nn, name))


@pytest.mark.parametrize("name", sorted(TORCH))
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_values_and_gradients(name: str, dtype: str) -> None:
    spacing = np.finfo(dtype).eps
    x = torch.tensor(POINTS, dtype=getattr(torch, dtype), requires_grad=True)
    y = TORCH[name]().eval()(x)
    (dx,) = torch.autograd.grad(y.sum(), x)
    points = jnp.asarray(POINTS, dtype)
    ours, pull = jax.vjp(ACTIVATIONS[name], points)
    assert ours.dtype == points.dtype
    scale = np.maximum(1, np.abs(POINTS))
    np.testing.assert_array_less(np.abs(ours - y.detach().numpy()) / scale, ACTIVATION_SPACINGS * spacing)
    gradient = pull(jnp.ones_like(ours))[0]
    np.testing.assert_array_less(np.abs(gradient - dx.numpy()), ACTIVATION_GRADIENT_SPACINGS * spacing)


@pytest.mark.parametrize("name", sorted(TORCH))
def test_infinity_and_nan(name: str) -> None:
    points = np.array([np.inf, -np.inf, np.nan])
    ours = np.asarray(ACTIVATIONS[name](jnp.asarray(points)))
    np.testing.assert_array_equal(ours, TORCH[name]().eval()(torch.tensor(points)).numpy())


@pytest.mark.parametrize(("name", "module"), [("gelu_tanh", nn.GELU("tanh")), ("identity", nn.Identity())])
def test_variants(name: str, module: nn.Module) -> None:
    np.testing.assert_allclose(
        ACTIVATIONS[name](jnp.asarray(POINTS)), module(torch.tensor(POINTS)).numpy(), atol=FLOAT64_ROUNDING / 10
    )
