"""Two-tower models with a shared embedding space: CLIP, SigLIP."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jax.lax import PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vit_flax.config import NO_DROPS, DropRates, TwoTowersConfig
from vit_flax.models.loop import NO_REMAT
from vit_flax.models.precision import HIGHEST, Precision
from vit_flax.models.text_transformer import TextTransformer
from vit_flax.models.vision_transformer import VisionTransformer

SCALE = math.log(1 / 0.07)  # initial log scale of the logits, as in CLIP
SIGMOID_SCALE, SIGMOID_BIAS = math.log(10), -10.0  # and as in SigLIP


class TwoTowers(nn.Module):
    """A two-tower model: logits of images and texts.

    Entry points for `apply`: the call itself (logits), `method="encode_images"` and `method="encode_texts"`
    (embeddings of length 1).

    Reference: transformers' CLIPModel, SiglipModel, Siglip2Model, MetaClip2Model; open_clip.CLIP.
    """

    config: TwoTowersConfig
    dtype: DTypeLike | None = None  # of the matrix products' operands; None: what inputs and parameters promote to
    param_dtype: DTypeLike = jnp.float32
    precision: PrecisionLike = HIGHEST  # of float32 products, or a whole Precision
    drop: DropRates = NO_DROPS  # of both towers; acts only in an apply with rngs={"dropout": key}
    remat: str = NO_REMAT  # what the backward pass of a block does not recompute: see vit_flax.models.loop
    scan: bool = False  # the blocks of each tower as one scanned loop

    @property
    def policy(self) -> Precision:
        """The dtypes that all layers get."""
        return Precision.of(self.dtype, self.param_dtype, self.precision)

    def setup(self) -> None:
        """Builds the towers, and the logits' scale and bias."""
        cfg = self.config
        runtime = (self.dtype, self.param_dtype, self.precision, self.drop, self.remat, self.scan)
        self.image = VisionTransformer(cfg.image, *runtime)
        self.text = TextTransformer(cfg.text, *runtime)
        params = self.policy.params
        scale = SIGMOID_SCALE if cfg.logit_bias else SCALE
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(scale), (), params)
        if cfg.logit_bias:
            self.logit_bias = self.param("logit_bias", nn.initializers.constant(SIGMOID_BIAS), (), params)

    def __call__(
        self,
        images: Array,
        tokens: Int[Array, "t n"],
        text_mask: Array | None = None,
        mask: Array | None = None,
        spatial_shapes: Array | None = None,
    ) -> tuple[Float[Array, "i t"], Float[Array, "t i"]]:
        """Returns the logits per image and per text, one the other transposed.

        Args:
            images: (I, H, W, C), or patches as VisionTransformer takes them.
            tokens: (T, N), token ids of the texts.
            text_mask: (T, N), False for padding; None: there is none, or the model reads it as it does every token.
            mask: (I, P), False for padding patches.
            spatial_shapes: (I, 2), patches along height and width of each image.
        """
        per_image = self.compare(self.encode_images(images, mask, spatial_shapes), self.encode_texts(tokens, text_mask))
        return per_image, per_image.T

    def encode_images(
        self, images: Array, mask: Array | None = None, spatial_shapes: Array | None = None
    ) -> Float[Array, "i e"]:
        """Returns the images' embeddings, L2-normalised."""
        return _unit(self.image(images, mask, spatial_shapes))

    def encode_texts(self, tokens: Int[Array, "t n"], mask: Array | None = None) -> Float[Array, "t e"]:
        """Returns the texts' embeddings, L2-normalised."""
        return _unit(self.text(tokens, mask))

    def compare(self, images: Float[Array, "i e"], texts: Float[Array, "t e"]) -> Float[Array, "i t"]:
        """Returns the logits of L2-normalised embeddings: scaled products, with the bias if there is one."""
        logits = jnp.matmul(images, texts.T, precision=self.policy.products) * jnp.exp(self.logit_scale)
        return logits + self.logit_bias if self.config.logit_bias else logits


def _unit(x: Float[Array, "b e"]) -> Float[Array, "b e"]:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)
