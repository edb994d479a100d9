"""Overlapping patch embedding: a convolution whose kernel is larger than its stride."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from vit_flax.config import ViTConfig
from vit_flax.models.feature_maps import Convolution
from vit_flax.models.patch_embed import check_images
from vit_flax.models.placed import reshape
from vit_flax.models.precision import Precision


class OverlappingPatchEmbed(nn.Module):
    """Convolves images to tokens, row by row.

    Raises:
        ValueError: the images' shape is not the config's.

    Reference: timm.models.hieradet_sam2.HieraPatchEmbed; transformers' Sam2PatchEmbeddings.
    """

    config: ViTConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the convolution."""
        cfg: Any = self.config
        self.proj = Convolution(
            cfg.embed_dim, cfg.patch_kernel, cfg.patch_stride, precision=self.precision, padding=cfg.patch_padding
        )

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Returns one token a patch."""
        check_images(images, self.config.image_size, self.config.in_chans)
        tokens = self.proj(images)
        return reshape(tokens, tokens.shape[0], -1, tokens.shape[-1])
