"""Layers of feature maps (B, H, W, C): convolution, transposed convolution, resizing."""

from __future__ import annotations

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from vit_flax.models.precision import Precision, accumulator_dtype
from vit_flax.models.resample import bilinear, bilinear_corners

_NHWC = ("NHWC", "HWIO", "NHWC")
_INIT = nn.initializers.normal(0.02)


class Convolution(nn.Module):
    """Convolves with a kernel and zero padding, which by default keeps the size at stride 1 where the kernel is odd.

    Reference: torch.nn.Conv2d(kernel_size, stride, padding=kernel_size // 2).
    """

    features: int
    kernel_size: int | tuple[int, int] = 3
    stride: int | tuple[int, int] = 1
    use_bias: bool = True
    precision: Precision = Precision()
    padding: tuple[int, int] | None = None  # along height and width, on both sides; None: half of the kernel

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b i j d"]:
        """Returns the convolved feature map."""
        x = jnp.asarray(x)
        sides, stride = (n if isinstance(n, tuple) else (n, n) for n in (self.kernel_size, self.stride))
        padding, dtype = self.padding or (sides[0] // 2, sides[1] // 2), self.precision.params
        kernel = self.param("kernel", _INIT, (*sides, x.shape[-1], self.features), dtype)
        operand = self.precision.operand_dtype(x, kernel)
        out = lax.conv_general_dilated(
            x.astype(operand),
            kernel.astype(operand),
            stride,
            [(side, side) for side in padding],
            dimension_numbers=_NHWC,
            precision=self.precision.products,
        ).astype(accumulator_dtype(operand))
        if not self.use_bias:
            return out
        return out + self.param("bias", nn.initializers.zeros, (self.features,), dtype)


class Enlargement(nn.Module):
    """A transposed convolution whose kernel is its stride: every cell becomes `factor` x `factor` cells.

    Reference: torch.nn.ConvTranspose2d(kernel_size=factor, stride=factor).
    """

    features: int
    factor: int
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, x: Float[Array | np.ndarray, "b h w c"]) -> Float[Array, "b i j d"]:
        """Returns the upsampled feature map."""
        x = jnp.asarray(x)
        (batch, height, width, chans), factor, dtype = x.shape, self.factor, self.precision.params
        kernel = self.param("kernel", _INIT, (factor, factor, chans, self.features), dtype)
        operand = self.precision.operand_dtype(x, kernel)
        # (B, H, W, C) x (F, F, C, D) -> (B, H, F, W, F, D)
        products = self.precision.products
        out = jnp.einsum("bhwc,ijcd->bhiwjd", x.astype(operand), kernel.astype(operand), precision=products)
        out = out.reshape(batch, height * factor, width * factor, self.features).astype(accumulator_dtype(operand))
        return out + self.param("bias", nn.initializers.zeros, (self.features,), dtype)


def resize_maps(
    x: Float[Array | np.ndarray, "b h w c"], size: tuple[int, int], corners: bool
) -> Float[Array, "b i j c"]:
    """Resizes feature maps bilinearly, without antialias; `corners` is torch's align_corners.

    Reference: torch.nn.functional.interpolate(mode="bilinear", align_corners=corners).
    """
    x = jnp.asarray(x)
    if x.shape[1:3] == tuple(size) and not corners:
        return x
    matrix = bilinear_corners if corners else bilinear
    dtype = accumulator_dtype(x.dtype)
    rows, columns = (jnp.asarray(matrix(old, new), dtype) for old, new in zip(x.shape[1:3], size, strict=True))
    return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x.astype(dtype), precision=lax.Precision.HIGHEST)
