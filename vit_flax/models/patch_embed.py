"""Patch embedding."""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from vit_flax.config import ViTConfig
from vit_flax.models.linear import matmul, stored_linear
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.placed import reshape
from vit_flax.models.precision import Precision


def check_images(images: Array, image_size: tuple[int, int], in_chans: int) -> None:
    """Raises ValueError, naming both shapes, unless `images` are (B, H, W, C) of the model's size."""
    expected = (*image_size, in_chans)
    if images.ndim == 4 and tuple(images.shape[1:]) == expected:
        return
    hint = ""
    if images.ndim == 4 and tuple(images.shape[1:]) == (in_chans, *image_size):
        hint = "; these look channels-first: transpose them with (0, 2, 3, 1)"
    elif tuple(images.shape) == expected:
        hint = "; add a batch axis"
    raise ValueError(f"images must have shape (batch, {', '.join(map(str, expected))}), got {images.shape}{hint}")


class PatchEmbed(nn.Module):
    """Cuts images into patches, row by row, and projects each to a token.

    The kernel has the shape (patch height, patch width, channels, embed_dim) of the equivalent convolution.

    Raises:
        ValueError: the images' shape is not the one given, or their sides do not divide by the patch size.

    Reference: the tutorial's Patch_Tokenization(img_size, patch_size, token_len); timm.layers.PatchEmbed.
    """

    image_size: tuple[int, int]
    patch_size: tuple[int, int]
    embed_dim: int = 768
    in_chans: int = 3
    use_bias: bool = True
    crop: bool = False  # leave out pixels beyond the last whole patch
    norm_layer: str | None = None  # normalises the tokens
    norm_eps: float | None = 1e-6
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the projection and the norm."""
        self.proj = PatchProjection(self.patch_size, self.embed_dim, self.use_bias, self.precision)
        if self.norm_layer is not None:
            self.norm = NORM_LAYERS[self.norm_layer](self.norm_eps, self.precision)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Returns one token a patch."""
        check_images(images, self.image_size, self.in_chans)
        for side, pixels, patch in zip(("height", "width"), self.image_size, self.patch_size, strict=True):
            if pixels % patch and not self.crop:
                raise ValueError(f"image {side} {pixels} is not divisible by the patch size {patch}")
        if self.crop:
            height, width = (pixels - pixels % p for pixels, p in zip(self.image_size, self.patch_size, strict=True))
            images = images[:, :height, :width]
        tokens = self.proj(images)
        return tokens if self.norm_layer is None else self.norm(tokens)


def build_patch_embed(config: ViTConfig, precision: Precision) -> PatchEmbed:
    """Returns the patch embedding that `config` describes."""
    cfg = config
    norm = (cfg.norm_layer if cfg.patch_norm else None, cfg.norm_eps)
    fields = (cfg.image_size, cfg.patch_size, cfg.embed_dim, cfg.in_chans, cfg.patch_bias, cfg.crop_to_patches)
    return PatchEmbed(*fields, *norm, precision)


class PatchProjection(nn.Module):
    """Convolves with a stride of one patch, as a matrix product."""

    patch_size: tuple[int, int]
    features: int
    use_bias: bool = True
    precision: Precision = Precision()

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Returns one projected token a patch."""
        batch, height, width, chans = images.shape
        ph, pw = self.patch_size
        shape = (ph, pw, chans, self.features)
        kernel = self.param("kernel", nn.initializers.normal(0.02), shape, self.precision.params)
        dtype = self.precision.operand_dtype(images, kernel)
        images = images.astype(dtype)  # before they are moved, so that less is
        # (B, H, W, C) -> (B, N, ph pw C)
        patches = reshape(images, batch, height // ph, ph, width // pw, pw, chans).transpose(0, 1, 3, 2, 4, 5)
        patches = reshape(patches, batch, -1, ph * pw * chans)
        bias = (
            self.param("bias", nn.initializers.zeros, (self.features,), self.precision.params)
            if self.use_bias
            else None
        )
        kernel, products = kernel.reshape(-1, self.features), self.precision.products
        if self.precision.stored is not None:
            return self.precision.cast_to_stored(stored_linear(patches, kernel, bias, dtype, products))
        tokens: Any = matmul(patches, kernel, dtype, products)
        return tokens if bias is None else tokens + bias
