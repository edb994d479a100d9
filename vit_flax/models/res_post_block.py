"""The transformer block that normalises last."""

from jaxtyping import Array, Float

from vit_flax.models.block import Block


class ResPostBlock(Block):
    """Adds normalised attention, then a normalised MLP.

    Reference: timm's ResPostBlock; Swin V2's residual post-norm, arXiv 2111.09883.
    """

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Returns the tokens after both residual steps."""
        x = x + self.keep(self.norm1(self.attn(x)))
        return x + self.keep(self.norm2(self.mlp(x)))
