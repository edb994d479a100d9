"""Images of any aspect ratio, as patches padded to one number: SigLIP 2's NaFlex."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vit_flax.config import ViTConfig
from vit_flax.models.patch_embed import PatchProjection, check_images
from vit_flax.models.placed import reshape
from vit_flax.models.precision import HIGHEST, Precision


def resize_to_each(
    table: Float[Array, "h w d"], spatial_shapes: Int[Array, "b 2"], length: int
) -> Float[Array, "b n d"]:
    """Returns the position table resized to each image's grid of patches, row by row, for `length` tokens an image.

    Bilinear with antialias; tokens beyond an image's patches get its first position. The grids may be traced.

    Reference: Siglip2VisionEmbeddings.resize_positional_embeddings.
    """
    height, width, dim = table.shape
    rows, columns = spatial_shapes[:, :1], spatial_shapes[:, 1:]
    token = jnp.arange(length)[None]
    token = jnp.where(token < rows * columns, token, 0)
    weights = _weights(token // columns, rows, height, table.dtype)[..., :, None]
    weights = weights * _weights(token % columns, columns, width, table.dtype)[..., None, :]
    flat = reshape(weights, *weights.shape[:2], height * width)
    return jnp.matmul(flat, table.reshape(height * width, dim), precision=HIGHEST)


def _weights(index: Array, new: Array, old: int, dtype: Any) -> Float[Array, "b n s"]:
    """Returns how much each of `old` samples counts for the samples `index` of `new`."""
    scale = old / new.astype(dtype)
    stretch = jnp.maximum(scale, 1.0)
    centre = (index.astype(dtype) + 0.5) * scale
    distance = (jnp.arange(old, dtype=dtype) + 0.5 - centre[..., None]) / stretch[..., None]
    weights = jnp.maximum(1.0 - jnp.abs(distance), 0.0)
    return weights / weights.sum(-1, keepdims=True)


class PaddedPatchEmbed(nn.Module):
    """Projects patches (B, N, p p C) that `vit_flax.preprocessing.naflex` made, or cuts images (B, H, W, C) into them.

    Raises:
        ValueError: the last axis is not of one patch, or mask and grids of patches are missing.

    Reference: transformers' Siglip2VisionEmbeddings; arXiv 2502.14786.
    """

    config: ViTConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the projection."""
        cfg = self.config
        self.proj = PatchProjection(cfg.patch_size, cfg.embed_dim, precision=self.precision)

    def __call__(self, patches: Array, mask: Array | None = None, spatial_shapes: Array | None = None) -> Array:
        """Returns one token a patch."""
        cfg = self.config
        height, width = cfg.patch_size
        pixels = height * width * cfg.in_chans
        if patches.ndim == 4:
            check_images(patches, cfg.image_size, cfg.in_chans)
            return self.proj(patches)
        if patches.ndim != 3 or patches.shape[-1] != pixels:
            raise ValueError(f"patches must have shape (batch, patches, {pixels}), got {patches.shape}")
        if mask is None or spatial_shapes is None:
            raise ValueError("patches need their mask (batch, patches) and spatial_shapes (batch, 2)")
        batch, count, _ = patches.shape
        # one above the other, an image of one column of patches
        return self.proj(reshape(patches, batch, count * height, width, cfg.in_chans))
