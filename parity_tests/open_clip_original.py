"""open_clip's image tower in PyTorch, written anew from its definition: a judge of the open_clip layout.

Names and numerics are those of open_clip.transformer.VisionTransformer with its default blocks (and so of OpenAI's
CLIP, with quick_gelu); transformers' CLIP, where it has the same options, is the other judge.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class LayerScale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, width: int, heads: int, mlp_width: int, activation: type[nn.Module], scale: bool):
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.ls_1 = LayerScale(width) if scale else nn.Identity()
        self.ln_2 = nn.LayerNorm(width)
        layers = {"c_fc": nn.Linear(width, mlp_width), "gelu": activation(), "c_proj": nn.Linear(mlp_width, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ls_2 = LayerScale(width) if scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.ls_1(self.attn(y, y, y, need_weights=False)[0])
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Transformer(nn.Module):
    def __init__(self, depth: int, *block: Any):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(*block) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resblocks:
            x = block(x)
        return x


class Tower(nn.Module):
    def __init__(
        self,
        image_size: tuple[int, int],
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float,
        output_dim: int,
        quick_gelu: bool,
        no_ln_pre: bool,
        pool_type: str,
        final_ln_after_pool: bool,
        ls_init_value: float | None,
    ):
        super().__init__()
        tokens = (image_size[0] // patch_size) * (image_size[1] // patch_size)
        self.conv1 = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(tokens + 1, width))
        self.ln_pre = nn.Identity() if no_ln_pre else nn.LayerNorm(width)
        block = (width, heads, int(width * mlp_ratio), QuickGELU if quick_gelu else nn.GELU, ls_init_value is not None)
        self.transformer = Transformer(layers, *block)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(torch.zeros(width, output_dim)) if output_dim else None
        self.pool, self.norm_last = pool_type, final_ln_after_pool

    def forward(self, images: Tensor) -> Tensor:
        x = self.conv1(images).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], dim=1) + self.positional_embedding
        x = self.transformer(self.ln_pre(x))
        x = x if self.norm_last else self.ln_post(x)
        x = {"avg": x[:, 1:].mean(1), "tok": x[:, 0], "none": x}[self.pool]
        x = self.ln_post(x) if self.norm_last else x
        return x if self.proj is None else x @ self.proj


class ImageCLIP(nn.Module):
    """A CLIP model as far as its images go: names begin with `visual.`."""

    def __init__(
        self,
        image_size: int | tuple[int, int],
        patch_size: int,
        width: int,
        layers: int,
        embed_dim: int,
        head_width: int = 64,
        mlp_ratio: float = 4.0,
        quick_gelu: bool = False,
        no_ln_pre: bool = False,
        pool_type: str = "tok",
        final_ln_after_pool: bool = False,
        ls_init_value: float | None = None,
    ):
        super().__init__()
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        self.visual = Tower(
            size, patch_size, width, layers, width // head_width, mlp_ratio, embed_dim, quick_gelu, no_ln_pre,
            pool_type, final_ln_after_pool, ls_init_value,
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        return self.visual(images)
