"""The ViT: patch tokens, class token, positions, encodings, head."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vit_flax.reference.encoding import Encoding
from vit_flax.reference.patch_tokenization import Patch_Tokenization
from vit_flax.reference.pos_embed import get_sinusoid_encoding


class ViT_Backbone(nn.Module):
    """Predicts from tokens: class token, fixed positions, `depth` encodings, norm, Linear on the class token.

    Args:
        preds: number of outputs.
        token_len: length of a token.
        num_tokens: number of tokens given to forward, without the class token.
        num_heads: number of attention heads.
        Encoding_hidden_chan_mul: hidden width of each encoding's network as a multiple of token_len.
        depth: number of encodings.
        qkv_bias: whether the q, k, v projections have a bias.
        qk_scale: factor on q; None means head_dim ** -0.5.
        act_layer: class of an elementwise activation, called without arguments.
        norm_layer: nn.LayerNorm or nn.RMSNorm.
    """

    def __init__(
        self,
        preds: int = 1,
        token_len: int = 768,
        num_tokens: int = 500,
        num_heads: int = 1,
        Encoding_hidden_chan_mul: float = 4.0,
        depth: int = 12,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
    ):
        super().__init__()
        self.num_tokens = num_tokens
        self.token_len = token_len
        self.cls_token = nn.Parameter(torch.zeros(1, 1, token_len))
        # A parameter, though never trained: so it is in the state_dict and follows .to() and .double().
        self.pos_embed = nn.Parameter(get_sinusoid_encoding(num_tokens + 1, token_len), requires_grad=False)
        self.blocks = nn.ModuleList(
            Encoding(token_len, num_heads, Encoding_hidden_chan_mul, qkv_bias, qk_scale, act_layer, norm_layer)
            for _ in range(depth)
        )
        self.norm = norm_layer(token_len)
        self.head = nn.Linear(token_len, preds)
        nn.init.trunc_normal_(self.cls_token, std=0.02)

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b preds"]:
        """Computes the predictions; raises ValueError for tokens of another number or length."""
        if x.ndim != 3 or tuple(x.shape[1:]) != (self.num_tokens, self.token_len):
            raise ValueError(
                f"expected tokens of shape (batch, {self.num_tokens}, {self.token_len}), got {tuple(x.shape)}"
            )
        # (b, n, d) -> (b, 1+n, d)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1)
        x = x + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.head(x[:, 0])


class ViT_Model(nn.Module):
    """Predicts from images: Patch_Tokenization, then ViT_Backbone.

    Args:
        img_size: (channels, height, width).
        patch_size: side of a square patch; must divide the height and the width.
        token_len: length of a token.
        preds: number of outputs.

    The remaining arguments are ViT_Backbone's.
    """

    def __init__(
        self,
        img_size: Sequence[int] = (1, 400, 100),
        patch_size: int = 50,
        token_len: int = 768,
        preds: int = 1,
        num_heads: int = 1,
        Encoding_hidden_chan_mul: float = 4.0,
        depth: int = 12,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
    ):
        super().__init__()
        self.patch_tokens = Patch_Tokenization(img_size, patch_size, token_len)
        self.backbone = ViT_Backbone(
            preds,
            token_len,
            self.patch_tokens.num_tokens,
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
        return self.backbone(self.patch_tokens(x))


def init_weights(module: nn.Module) -> None:
    """Sets a Linear to normal weights (std 0.02) and zero bias, and a norm to the identity; leaves others alone.

    trunc_normal_'s bounds are absolute (-2 and 2, a hundred deviations out), so nothing is truncated in practice.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.RMSNorm):
        nn.init.ones_(module.weight)
