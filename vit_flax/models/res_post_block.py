"""The transformer block that normalises last."""

from typing import Any

from jaxtyping import Array, Float

from vit_flax.models.block import Block


class ResPostBlock(Block):
    """Adds normalised attention, then a normalised MLP.

    Reference: timm's ResPostBlock; Swin V2's residual post-norm, arXiv 2111.09883.
    """

    def __call__(self, x: Float[Array, "b n d"], *positions: Any) -> Float[Array, "b n d"]:
        """Returns the tokens after both residual steps; `positions` go to an attention that takes them."""
        x = x + self.keep(self.norm1(self.attn(x, *positions)))
        return x + self.keep(self.norm2(self.mlp(x)))
