"""OpenMMLab's ViTs in PyTorch, written anew from their published names: the judge of the mmpretrain layouts.

Names of parameters and what is computed are those of mmpretrain.models.backbones (vision_transformer, deit, deit3,
beit), mmcv's FFN, mmpretrain.models.heads and mmseg.models.backbones.vit, in evaluation.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class Options:
    grid: tuple[int, int] = (3, 2)
    width: int = 16
    heads: int = 2
    hidden: int = 24
    depth: int = 2
    classes: int = 3
    norm_eps: float = 1e-6
    dist_token: bool = False
    deit3: bool = False  # positions are added before the class token is put in front, layers have a scale
    average: bool = False  # out_type='avg_featmap'
    pre_norm: bool = False  # CLIP
    gated: bool = False  # SwiGLUFFNFused
    mmseg: bool = False  # mmcv's MultiheadAttention
    beit: bool = False
    hidden_head: int | None = None  # VisionTransformerClsHead(hidden_dim=...)
    linear_head: bool = False  # LinearClsHead


class Scale(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class PatchEmbed(nn.Module):
    def __init__(self, o: Options):
        super().__init__()
        self.projection = nn.Conv2d(3, o.width, 4, 4, bias=not o.pre_norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x).flatten(2).mT


class Attention(nn.Module):
    relative_position_index: Tensor

    def __init__(self, o: Options):
        super().__init__()
        self.heads, self.beit = o.heads, o.beit
        self.qkv = nn.Linear(o.width, 3 * o.width, bias=not o.beit)
        self.proj = nn.Linear(o.width, o.width)
        if o.deit3:
            self.gamma1 = Scale(o.width)
        if o.beit:
            self.q_bias = nn.Parameter(torch.zeros(o.width))
            self.v_bias = nn.Parameter(torch.zeros(o.width))
            height, wide = o.grid
            rows = (2 * height - 1) * (2 * wide - 1) + 3
            self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, o.heads))
            self.register_buffer("relative_position_index", relative_index(height, wide))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x)
        if self.beit:
            qkv = qkv + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        scores = q * q.shape[-1] ** -0.5 @ k.mT
        if self.beit:
            scores = scores + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        x = self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return self.gamma1(x) if hasattr(self, "gamma1") else x


def relative_index(height: int, width: int) -> Tensor:
    """Which row of the table belongs to two tokens, the class token first."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = rows.flatten(), columns.flatten()
    between = (y[:, None] - y + height - 1) * (2 * width - 1) + x[:, None] - x + width - 1
    last = (2 * height - 1) * (2 * width - 1) + 3
    index = torch.zeros(len(y) + 1, len(y) + 1, dtype=torch.long)
    index[1:, 1:] = between
    index[0, :], index[:, 0], index[0, 0] = last - 3, last - 2, last - 1
    return index


class TorchAttention(nn.Module):
    """mmcv's MultiheadAttention, which has torch's as `attn`."""

    def __init__(self, o: Options):
        super().__init__()
        self.attn = nn.MultiheadAttention(o.width, o.heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x)[0]


class Ffn(nn.Module):
    def __init__(self, o: Options):
        super().__init__()
        self.gated = o.gated
        if o.gated:
            self.w12 = nn.Linear(o.width, 2 * o.hidden)
            self.w3 = nn.Linear(o.hidden, o.width)
        else:
            first = nn.Sequential(nn.Linear(o.width, o.hidden), nn.GELU(), nn.Dropout(0.0))
            self.layers = nn.Sequential(first, nn.Linear(o.hidden, o.width), nn.Dropout(0.0))
        if o.deit3:
            self.gamma2 = Scale(o.width)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            gate, value = self.w12(x).chunk(2, -1)
            x = self.w3(functional.silu(gate) * value)
        else:
            x = self.layers(x)
        return self.gamma2(x) if hasattr(self, "gamma2") else x


class Layer(nn.Module):
    def __init__(self, o: Options):
        super().__init__()
        self.ln1 = nn.LayerNorm(o.width, o.norm_eps)
        self.attn = TorchAttention(o) if o.mmseg else Attention(o)
        self.ln2 = nn.LayerNorm(o.width, o.norm_eps)
        self.ffn = Ffn(o)
        if o.beit:
            self.gamma_1 = nn.Parameter(torch.ones(o.width))
            self.gamma_2 = nn.Parameter(torch.ones(o.width))

    def forward(self, x: Tensor) -> Tensor:
        if hasattr(self, "gamma_1"):
            x = x + self.gamma_1 * self.attn(self.ln1(x))
            return x + self.gamma_2 * self.ffn(self.ln2(x))
        x = x + self.attn(self.ln1(x))
        return x + self.ffn(self.ln2(x))


class Backbone(nn.Module):
    def __init__(self, o: Options):
        super().__init__()
        self.o = o
        self.cls_token = nn.Parameter(torch.zeros(1, 1, o.width))
        if o.dist_token:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, o.width))
        if not o.beit:
            prefix = 0 if o.deit3 else 1 + o.dist_token
            self.pos_embed = nn.Parameter(torch.zeros(1, o.grid[0] * o.grid[1] + prefix, o.width))
        self.patch_embed = PatchEmbed(o)
        self.layers = nn.ModuleList(Layer(o) for _ in range(o.depth))
        if o.pre_norm:
            self.pre_norm = nn.LayerNorm(o.width, o.norm_eps)
        if o.average:
            self.ln2 = nn.LayerNorm(o.width, o.norm_eps)
        else:
            self.ln1 = nn.LayerNorm(o.width, o.norm_eps)

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.patch_embed(images)
        prefix = [self.cls_token, self.dist_token] if self.o.dist_token else [self.cls_token]
        prefix = [token.expand(len(x), -1, -1) for token in prefix]
        if self.o.deit3:
            x = torch.cat([*prefix, x + self.pos_embed], 1)
        else:
            x = torch.cat([*prefix, x], 1)
            x = x if self.o.beit else x + self.pos_embed
        x = self.pre_norm(x) if self.o.pre_norm else x
        for layer in self.layers:
            x = layer(x)
        if self.o.average:
            return [self.ln2(x[:, len(prefix) :].mean(1))]
        x = self.ln1(x)
        return [x[:, place] for place in range(len(prefix))]


class Head(nn.Module):
    def __init__(self, o: Options):
        super().__init__()
        if o.linear_head:
            self.fc = nn.Linear(o.width, o.classes)
            return
        layers: dict[str, nn.Module] = {}
        if o.hidden_head:
            layers["pre_logits"], layers["act"] = nn.Linear(o.width, o.hidden_head), nn.Tanh()
        layers["head"] = nn.Linear(o.hidden_head or o.width, o.classes)
        if o.dist_token:
            layers["head_dist"] = nn.Linear(o.width, o.classes)
        self.layers = nn.ModuleDict(layers)

    def forward(self, features: list[Tensor]) -> Tensor:
        if hasattr(self, "fc"):
            return self.fc(features[0])
        if len(features) == 2:
            return (self.layers["head"](features[0]) + self.layers["head_dist"](features[1])) / 2
        for layer in self.layers.values():
            features = [layer(features[0])]
        return features[0]


class Classifier(nn.Module):
    """mmpretrain's ImageClassifier."""

    def __init__(self, o: Options):
        super().__init__()
        self.backbone = Backbone(o)
        self.head = Head(o)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images))
