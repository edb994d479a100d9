"""The T2T-ViT: overlapping soft splits with small transformers between, then the ViT's backbone."""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from vit_flax.reference.attention import Attention
from vit_flax.reference.neural_net import NeuralNet
from vit_flax.reference.patch_tokenization import check_images, unpack_img_size
from vit_flax.reference.vit import ViT_Backbone, init_weights


class TokenTransformer(nn.Module):
    """Computes attn(norm1(x)), which changes the token length from dim to chan, then x + neuralnet(norm2(x)).

    Args:
        dim: length of an input token.
        chan: length of an output token.
        num_heads: number of attention heads.
        hidden_chan_mul: hidden width of the network as a multiple of chan, rounded down.
        qkv_bias: whether the q, k, v projection has a bias.
        qk_scale: factor on q; None means (chan / num_heads) ** -0.5.
        act_layer: class of an elementwise activation, called without arguments.
        norm_layer: nn.LayerNorm or nn.RMSNorm, called with dim and with chan.
    """

    def __init__(
        self,
        dim: int,
        chan: int,
        num_heads: int,
        hidden_chan_mul: float = 1.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
    ):
        super().__init__()
        self.norm1 = norm_layer(dim)
        self.attn = Attention(dim, chan=chan, num_heads=num_heads, qkv_bias=qkv_bias, qk_scale=qk_scale)
        self.norm2 = norm_layer(chan)
        self.neuralnet = NeuralNet(chan, hidden_chan=int(chan * hidden_chan_mul), out_chan=chan, act_layer=act_layer)

    def forward(self, x: Float[Tensor, "b n dim"]) -> Float[Tensor, "b n chan"]:
        """Applies the transformer."""
        x = self.attn(self.norm1(x))
        return x + self.neuralnet(self.norm2(x))


class Tokens2Token(nn.Module):
    """Turns an image into tokens by three soft splits with a TokenTransformer after the first and the second.

    A soft split is an overlapping nn.Unfold: kernel k, stride (k+1)//2, padding (k+1)//4. Between splits the tokens
    are laid back into an image, row by row, at the (height, width) of the split before. Height and width may differ.

    Args:
        img_size: (channels, height, width).
        softsplit_kernels: side of the square kernel of each soft split.
        num_heads: number of attention heads of the TokenTransformers.
        token_chan: token length inside the module.
        token_len: length of an output token.

    The remaining arguments are TokenTransformer's.

    Raises:
        ValueError: if a soft split would give no token.
    """

    def __init__(
        self,
        img_size: Sequence[int] = (1, 1700, 500),
        softsplit_kernels: Sequence[int] = (7, 3, 3),
        num_heads: int = 1,
        token_chan: int = 64,
        token_len: int = 768,
        hidden_chan_mul: float = 1.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
    ):
        super().__init__()
        if len(softsplit_kernels) != 3 or min(softsplit_kernels) < 1:
            raise ValueError(f"softsplit_kernels must be three positive numbers, not {tuple(softsplit_kernels)}")
        self.img_size = unpack_img_size(img_size)
        self.token_chan = token_chan
        self.token_len = token_len
        channels, height, width = self.img_size
        k0, k1, k2 = softsplit_kernels
        self.size0 = softsplit_size(height, width, k0)
        self.size1 = softsplit_size(*self.size0, k1)
        self.size2 = softsplit_size(*self.size1, k2)
        self.num_tokens = self.size2[0] * self.size2[1]

        transformer_args = (num_heads, hidden_chan_mul, qkv_bias, qk_scale, act_layer, norm_layer)
        self.soft_split0 = soft_split(k0)
        self.transformer1 = TokenTransformer(channels * k0**2, token_chan, *transformer_args)
        self.soft_split1 = soft_split(k1)
        self.transformer2 = TokenTransformer(token_chan * k1**2, token_chan, *transformer_args)
        self.soft_split2 = soft_split(k2)
        self.project = nn.Linear(token_chan * k2**2, token_len)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n d"]:
        """Computes the tokens; raises ValueError for images of another size than img_size."""
        check_images(x, self.img_size)
        # (b, c, h, w) -> (b, c*k0*k0, n0) -> (b, n0, token_chan)
        x = self.transformer1(self.soft_split0(x).transpose(1, 2))
        # (b, n0, token_chan) -> (b, token_chan, h0, w0)
        x = x.transpose(1, 2).reshape(x.shape[0], self.token_chan, *self.size0)
        x = self.transformer2(self.soft_split1(x).transpose(1, 2))
        x = x.transpose(1, 2).reshape(x.shape[0], self.token_chan, *self.size1)
        return self.project(self.soft_split2(x).transpose(1, 2))


class T2T_ViT(nn.Module):
    """Predicts from images: Tokens2Token, then ViT_Backbone.

    Args:
        img_size: (channels, height, width).
        softsplit_kernels: side of the square kernel of each soft split.
        preds: number of outputs.
        token_len: length of a token in the backbone.
        token_chan: token length inside Tokens2Token.
        num_heads: number of attention heads, of the TokenTransformers and of the encodings.
        T2T_hidden_chan_mul: hidden width of each TokenTransformer's network as a multiple of token_chan.
        Encoding_hidden_chan_mul: hidden width of each encoding's network as a multiple of token_len.
        depth: number of encodings.
        qkv_bias: whether the q, k, v projections have a bias, in both halves.
        qk_scale: factor on q, in both halves; None means head_dim ** -0.5 of each.
        act_layer: class of an elementwise activation, called without arguments.
        norm_layer: nn.LayerNorm or nn.RMSNorm.
    """

    def __init__(
        self,
        img_size: Sequence[int] = (1, 1700, 500),
        softsplit_kernels: Sequence[int] = (31, 3, 3),
        preds: int = 1,
        token_len: int = 768,
        token_chan: int = 64,
        num_heads: int = 1,
        T2T_hidden_chan_mul: float = 1.0,
        Encoding_hidden_chan_mul: float = 4.0,
        depth: int = 12,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
    ):
        super().__init__()
        self.tokens_to_token = Tokens2Token(
            img_size,
            softsplit_kernels,
            num_heads,
            token_chan,
            token_len,
            T2T_hidden_chan_mul,
            qkv_bias,
            qk_scale,
            act_layer,
            norm_layer,
        )
        self.vit_backbone = ViT_Backbone(
            preds,
            token_len,
            self.tokens_to_token.num_tokens,
            num_heads,
            Encoding_hidden_chan_mul,
            depth,
            qkv_bias,
            qk_scale,
            act_layer,
            norm_layer,
        )
        self.apply(init_weights)

    def no_weight_decay(self) -> set[str]:
        """Returns the last name components of the parameters that weight decay leaves out."""
        return {"cls_token"}

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b preds"]:
        """Computes the predictions; raises ValueError for images of another size than img_size."""
        return self.vit_backbone(self.tokens_to_token(x))


def soft_split(kernel: int) -> nn.Unfold:
    """Builds the overlapping Unfold of a soft split."""
    return nn.Unfold(kernel_size=kernel, stride=(kernel + 1) // 2, padding=(kernel + 1) // 4)


def softsplit_size(height: int, width: int, kernel: int) -> tuple[int, int]:
    """Computes how many rows and columns of tokens a soft split makes of a (height, width) image.

    Raises:
        ValueError: if there would be none.
    """
    stride, padding = (kernel + 1) // 2, (kernel + 1) // 4
    rows, columns = ((size + 2 * padding - kernel) // stride + 1 for size in (height, width))
    if rows < 1 or columns < 1:
        raise ValueError(
            f"a soft split with kernel {kernel} (padding {padding}) gives no token on an image of {height}x{width}"
        )
    return rows, columns
