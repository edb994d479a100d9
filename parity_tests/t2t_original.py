"""The original T2T-ViT in PyTorch, written anew from its definition: the judge of the t2t_vit layout.

Names of parameters and what is computed are those of yitu-opensource/T2T-ViT (models/t2t_vit.py, token_performer.py,
token_transformer.py, transformer_block.py), without dropout, and without its casts to float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float) -> Tensor:
    """Softmax attention of (B, N, C) queries, keys and values."""
    q, k, v = (x.unflatten(-1, (heads, -1)).movedim(2, 1) for x in (q, k, v))
    return ((q @ k.mT) * scale).softmax(-1).matmul(v).movedim(1, 2).flatten(2)


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class TokenAttention(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.scale = width**-0.5  # of the input, though the heads are `out` wide
        self.qkv = nn.Linear(width, 3 * out, bias=False)
        self.proj = nn.Linear(out, out)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return v + self.proj(attend(q, k, v, 1, self.scale))


class TokenTransformer(nn.Module):
    def __init__(self, width: int, out: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = TokenAttention(width, out)
        self.norm2 = nn.LayerNorm(out)
        self.mlp = Mlp(out, out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TokenPerformer(nn.Module):
    epsilon = 1e-8

    def __init__(self, width: int, out: int):
        super().__init__()
        self.kqv = nn.Linear(width, 3 * out)
        self.proj = nn.Linear(out, out)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(out)
        self.mlp = nn.Sequential(nn.Linear(out, out), nn.GELU(), nn.Linear(out, out))
        count = out // 2
        self.w = nn.Parameter(nn.init.orthogonal_(torch.empty(count, out)) * math.sqrt(count), requires_grad=False)

    def phi(self, x: Tensor) -> Tensor:
        return torch.exp(x @ self.w.T - x.square().sum(-1, keepdim=True) / 2) / math.sqrt(len(self.w))

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = self.kqv(self.norm1(x)).chunk(3, -1)
        weights = self.phi(q) @ self.phi(k).mT  # (B, N, N): the order of the products is theirs, not the result
        gathered = weights @ v / (weights.sum(-1, keepdim=True) + self.epsilon)
        x = v + self.proj(gathered)
        return x + self.mlp(self.norm2(x))


class TokensToToken(nn.Module):
    def __init__(self, tokens_type: str, chans: int, width: int, token_dim: int):
        super().__init__()
        block = {"performer": TokenPerformer, "transformer": TokenTransformer}[tokens_type]
        self.attention1 = block(chans * 49, token_dim)
        self.attention2 = block(token_dim * 9, token_dim)
        self.project = nn.Linear(token_dim * 9, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention1(functional.unfold(x, 7, stride=4, padding=2).mT)
        x = self.attention2(functional.unfold(self.to_image(x), 3, stride=2, padding=1).mT)
        return self.project(functional.unfold(self.to_image(x), 3, stride=2, padding=1).mT)

    @staticmethod
    def to_image(tokens: Tensor) -> Tensor:
        side = math.isqrt(tokens.shape[1])
        return tokens.mT.unflatten(-1, (side, side))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, qkv_bias: bool, qk_scale: float | None):
        super().__init__()
        self.heads, self.scale = heads, qk_scale or (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.proj(attend(q, k, v, self.heads, self.scale))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_ratio: float, qkv_bias: bool, qk_scale: float | None):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, qkv_bias, qk_scale)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def sinusoid(rows: int, width: int) -> Tensor:
    columns = torch.arange(width, dtype=torch.float64)
    angles = torch.arange(rows, dtype=torch.float64)[:, None] / 10000 ** (2 * (columns // 2) / width)
    return torch.where(columns % 2 == 0, angles.sin(), angles.cos())[None].float()


class OriginalT2TViT(nn.Module):
    def __init__(
        self,
        img_size: int = 224,
        tokens_type: str = "performer",
        in_chans: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        qk_scale: float | None = None,
        token_dim: int = 64,
    ):
        super().__init__()
        self.tokens_to_token = TokensToToken(tokens_type, in_chans, embed_dim, token_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(sinusoid((img_size // 16) ** 2 + 1, embed_dim), requires_grad=False)
        block = (embed_dim, num_heads, mlp_ratio, qkv_bias, qk_scale)
        self.blocks = nn.ModuleList(Block(*block) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens_to_token(x)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


# What the published models are built with: width, depth, heads, MLP ratio, kind of tokens; and what the repository's
# README says of their size, in millions.
PUBLISHED = {
    "t2t_vit_7": (256, 7, 4, 2.0, "performer", 4.3),
    "t2t_vit_10": (256, 10, 4, 2.0, "performer", 5.9),
    "t2t_vit_12": (256, 12, 4, 2.0, "performer", 6.9),
    "t2t_vit_14": (384, 14, 6, 3.0, "performer", 21.5),
    "t2t_vit_19": (448, 19, 7, 3.0, "performer", 39.2),
    "t2t_vit_24": (512, 24, 8, 3.0, "performer", 64.1),
    "t2t_vit_t_14": (384, 14, 6, 3.0, "transformer", 21.5),
    "t2t_vit_t_19": (448, 19, 7, 3.0, "transformer", 39.2),
    "t2t_vit_t_24": (512, 24, 8, 3.0, "transformer", 64.1),
}
