"""Patches normalised before and after their projection, as vit-pytorch has them."""

import flax.linen as nn
from jaxtyping import Array, Float

from vit_flax.config import ViTConfig
from vit_flax.models.linear import Linear
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.patch_embed import check_images
from vit_flax.models.placed import reshape
from vit_flax.models.precision import Precision


class NormedPatchEmbed(nn.Module):
    """Patch embedding with a norm before and after the projection.

    A patch's numbers are ordered row, column, channel.

    Raises:
        ValueError: the images' shape is not the config's.

    Reference: vit_pytorch.ViT.to_patch_embedding.
    """

    config: ViTConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the projection and the norms around it."""
        cfg = self.config
        norm = NORM_LAYERS[cfg.norm_layer]
        self.patch_norm = norm(cfg.norm_eps, self.precision)
        self.proj = Linear(cfg.embed_dim, True, self.precision)
        self.norm = norm(cfg.norm_eps, self.precision)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Returns one token a patch."""
        cfg = self.config
        check_images(images, cfg.image_size, cfg.in_chans)
        (rows, columns), (height, width) = cfg.grid_size, cfg.patch_size
        # (B, H, W, C) -> (B, N, p p C)
        patches = reshape(images, images.shape[0], rows, height, columns, width, cfg.in_chans).transpose(
            0, 1, 3, 2, 4, 5
        )
        patches = reshape(patches, images.shape[0], rows * columns, height * width * cfg.in_chans)
        return self.norm(self.proj(self.patch_norm(patches)))
