"""T2T: tokens from three overlapping soft splits, with attention between them."""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from vit_flax.config import SoftSplits, ViTConfig, softsplit_size
from vit_flax.models.attention import Attention
from vit_flax.models.linear import Linear
from vit_flax.models.mlp import Mlp
from vit_flax.models.norm import NORM_LAYERS
from vit_flax.models.patch_embed import check_images
from vit_flax.models.placed import reshape
from vit_flax.models.precision import Precision
from vit_flax.models.token_performer import TokenPerformer


def soft_split(images: Float[Array, "b h w c"], kernel: int) -> Float[Array, "b i j d"]:
    """Cuts images into overlapping patches of `kernel` pixels, stride (k+1)//2, zero padding (k+1)//4.

    A patch's values are ordered channel, row, column, as torch.nn.Unfold's.

    Reference: the tutorial's Tokens2Token.soft_split0..2.
    """
    batch, height, width, chans = images.shape
    rows, columns = softsplit_size(height, kernel), softsplit_size(width, kernel)
    # (B, H, W, C) -> (B, rows, k, W, C) -> (B, rows, k, columns, k, C)
    x = _unfold_axis(_unfold_axis(images, 1, rows, kernel), 3, columns, kernel)
    return reshape(x.transpose(0, 1, 3, 5, 2, 4), batch, rows, columns, chans * kernel * kernel)


def _unfold_axis(x: Array, axis: int, count: int, kernel: int) -> Array:
    """Unfolds an axis into `count` overlapping pieces: it becomes two axes (count, kernel)."""
    stride, padding = (kernel + 1) // 2, (kernel + 1) // 4
    # a piece is never longer than two strides: one run of `stride` values and the next, without a gather
    length = (count + 1) * stride
    after = max(0, length - padding - x.shape[axis])
    x = jnp.pad(x, [(padding, after) if i == axis else (0, 0) for i in range(x.ndim)])
    x = lax.slice_in_dim(x, 0, length, axis=axis)
    x = reshape(x, *x.shape[:axis], count + 1, stride, *x.shape[axis + 1 :])
    this, following = (lax.slice_in_dim(x, i, i + count, axis=axis) for i in (0, 1))
    return lax.slice_in_dim(jnp.concatenate([this, following], axis + 1), 0, kernel, axis=axis + 1)


class TokenTransformer(nn.Module):
    """Attends over tokens while narrowing them to `features`, then adds an MLP.

    There is no skip around the attention, since its widths differ; its own value skip stands in.

    Reference: the tutorial's TokenTransformer(dim, chan, num_heads, hidden_chan_mul, ...).
    """

    features: int  # the tutorial's `chan`
    num_heads: int = 1
    mlp_ratio: float = 1.0
    qkv_bias: bool = False
    qk_scale: float | None = None
    activation: str = "gelu"
    norm_layer: str = "layernorm"
    norm_eps: float | None = 1e-5
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the four layers."""
        norm = NORM_LAYERS[self.norm_layer]
        self.norm1 = norm(self.norm_eps, self.precision)
        self.attn = Attention(
            self.features, self.num_heads, self.qkv_bias, self.qk_scale, value_skip=True, precision=self.precision
        )
        self.norm2 = norm(self.norm_eps, self.precision)
        self.mlp = Mlp(int(self.features * self.mlp_ratio), activation=self.activation, precision=self.precision)

    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n e"]:
        """Returns the tokens, `features` wide."""
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    """Turns images into tokens: split, transform, split, transform, split, project.

    Raises:
        ValueError: the images' shape is not the config's.

    Reference: the tutorial's Tokens2Token; T2T_module of T2T-ViT, arXiv 2101.11986.
    """

    config: ViTConfig
    precision: Precision = Precision()

    def setup(self) -> None:
        """Builds the two token transformers and the projection."""
        cfg = self.config
        chans = (cfg.in_chans, cfg.token_chan)
        self.transformer1, self.transformer2 = (
            self._token_block(chan * kernel**2) for chan, kernel in zip(chans, cfg.softsplit_kernels, strict=False)
        )
        self.project = Linear(cfg.embed_dim, precision=self.precision)

    @nn.nowrap
    def _token_block(self, width: int) -> nn.Module:
        cfg, soft_splits = self.config, self.config.tokens
        assert isinstance(soft_splits, SoftSplits)
        norm_fields = (cfg.activation, cfg.norm_layer, cfg.norm_eps)
        if cfg.tokens_type == "performer":
            return TokenPerformer(cfg.token_chan, *norm_fields, self.precision)
        qkv_bias = cfg.qkv_bias if cfg.token_qkv_bias is None else cfg.token_qkv_bias
        scale = width**-0.5 if cfg.token_input_scale else cfg.qk_scale
        fields = (cfg.token_chan, soft_splits.heads(cfg), cfg.token_mlp_ratio, qkv_bias, scale)
        return TokenTransformer(*fields, *norm_fields, self.precision)

    def __call__(self, images: Float[Array, "b h w c"]) -> Float[Array, "b n d"]:
        """Returns the tokens, `embed_dim` wide."""
        cfg = self.config
        check_images(images, cfg.image_size, cfg.in_chans)
        x = images
        for kernel, transformer in zip(cfg.softsplit_kernels, (self.transformer1, self.transformer2), strict=False):
            x = soft_split(x, kernel)
            batch, height, width, dim = x.shape
            x = reshape(transformer(reshape(x, batch, height * width, dim)), batch, height, width, -1)
        x = soft_split(x, cfg.softsplit_kernels[2])
        return self.project(reshape(x, x.shape[0], -1, x.shape[-1]))
