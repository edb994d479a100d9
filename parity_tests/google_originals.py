"""Google's two JAX ViTs in plain flax.linen, written anew from their definitions: the judges of the .npz layouts.

`VisionTransformerJax` is google-research/vision_transformer's (vit_jax/models_vit.py), `BigVisionViT` that of
google-research/big_vision (models/vit.py). Modules have the names that they have there; nothing of vit_flax is used.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array

DTYPE = {"dtype": jnp.float64, "param_dtype": jnp.float64}


class Mlp(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        hidden = nn.gelu(nn.Dense(self.width, name="Dense_0", **DTYPE)(x))
        return nn.Dense(x.shape[-1], name="Dense_1", **DTYPE)(hidden)


class Block(nn.Module):
    heads: int
    mlp_dim: int
    names: tuple[str, str, str, str]

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> tuple[Array, None]:
        norm1, attention, norm2, mlp = self.names
        y = nn.LayerNorm(name=norm1, **DTYPE)(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name=attention, **DTYPE)(y, y, mask=mask)
        return x + Mlp(self.mlp_dim, name=mlp)(nn.LayerNorm(name=norm2, **DTYPE)(x)), None


class AddPositions(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x + self.param("pos_embedding", nn.initializers.normal(), (1, *x.shape[1:]), jnp.float64)


class Encoder(nn.Module):
    depth: int
    heads: int
    mlp_dim: int
    old: bool
    scan: bool = False

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        names = ("LayerNorm_0", "MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
        if self.old:
            names = ("LayerNorm_0", "MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
            x = AddPositions(name="posembed_input")(x)
        if self.scan:
            same_mask: Any = nn.broadcast  # annotated as a number of an axis alone
            scanned = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=same_mask,
                              length=self.depth)  # fmt: skip
            x, _ = scanned(self.heads, self.mlp_dim, names, name="encoderblock")(x, mask)
        else:
            for i in range(self.depth):
                x, _ = Block(self.heads, self.mlp_dim, names, name=f"encoderblock_{i}")(x, mask)
        return nn.LayerNorm(name="encoder_norm", **DTYPE)(x)


class MAPHead(nn.Module):
    heads: int
    mlp_dim: int

    @nn.compact
    def __call__(self, x: Array, mask: Array | None = None) -> Array:
        probe = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, x.shape[-1]), jnp.float64)
        probe = jnp.tile(probe, (len(x), 1, 1))
        attention = nn.MultiHeadDotProductAttention(self.heads, name="MultiHeadDotProductAttention_0", **DTYPE)
        x = attention(probe, x, mask=mask)
        y = nn.LayerNorm(name="LayerNorm_0", **DTYPE)(x)
        return (x + Mlp(self.mlp_dim, name="MlpBlock_0")(y))[:, 0]


def patches(images: Array, width: int, patch: tuple[int, int]) -> Array:
    x = nn.Conv(width, patch, patch, padding="VALID", name="embedding", **DTYPE)(images)
    return x.reshape(len(x), -1, width)


class VisionTransformerJax(nn.Module):
    width: int = 24
    depth: int = 2
    heads: int = 3
    mlp_dim: int = 40
    patch: tuple[int, int] = (4, 4)
    classifier: str = "token"
    representation_size: int | None = None
    num_classes: int = 5

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = patches(images, self.width, self.patch)
        if self.classifier == "token":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width), jnp.float64)
            x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
        x = Encoder(self.depth, self.heads, self.mlp_dim, old=True, name="Transformer")(x)
        x = {"token": lambda: x[:, 0], "gap": lambda: x.mean(1), "unpooled": lambda: x}[self.classifier]()
        if self.representation_size is not None:
            x = nn.tanh(nn.Dense(self.representation_size, name="pre_logits", **DTYPE)(x))
        return nn.Dense(self.num_classes, name="head", **DTYPE)(x) if self.num_classes else x


class BigVisionViT(nn.Module):
    width: int = 24
    depth: int = 2
    heads: int = 3
    mlp_dim: int = 40
    patch: tuple[int, int] = (4, 4)
    pool_type: str = "gap"
    posemb: str = "learn"
    rep_size: int = 0
    num_classes: int = 5
    scan: bool = False

    @nn.compact
    def __call__(self, images: Array) -> Array:
        x = patches(images, self.width, self.patch)
        if self.posemb == "learn":
            x = x + self.param("pos_embedding", nn.initializers.normal(), (1, *x.shape[1:]), jnp.float64)
        else:
            x = x + self.table(images.shape[1] // self.patch[0], images.shape[2] // self.patch[1])
        if self.pool_type == "tok":
            cls = self.param("cls", nn.initializers.zeros, (1, 1, self.width), jnp.float64)
            x = jnp.concatenate([jnp.tile(cls, (len(x), 1, 1)), x], axis=1)
        x = Encoder(self.depth, self.heads, self.mlp_dim, old=False, scan=self.scan, name="Transformer")(x)
        if self.pool_type == "map":
            x = MAPHead(self.heads, self.mlp_dim, name="MAPHead_0")(x)
        else:
            x = x.mean(1) if self.pool_type == "gap" else x[:, 0]
        if self.rep_size:
            x = nn.tanh(nn.Dense(self.rep_size, name="pre_logits", **DTYPE)(x))
        return nn.Dense(self.num_classes, name="head", **DTYPE)(x) if self.num_classes else x

    def table(self, height: int, width: int) -> Array:
        y, x = jnp.mgrid[:height, :width]
        omega = 10_000.0 ** (-jnp.arange(self.width // 4) / (self.width // 4 - 1))
        y, x = (jnp.outer(axis.ravel(), omega) for axis in (y, x))
        return jnp.concatenate([jnp.sin(x), jnp.cos(x), jnp.sin(y), jnp.cos(y)], axis=1)[None].astype(jnp.float32)


class BigVisionNaFlex(nn.Module):
    """google-research/big_vision's ViT of images of any aspect ratio (models/proj/image_text/naflex_vit.py)."""

    width: int = 24
    depth: int = 2
    heads: int = 3
    mlp_dim: int = 40
    rows: int = 4
    scan: bool = False

    @nn.compact
    def __call__(self, images: tuple[Array, Array, Array]) -> Array:
        patches, mask, grids = images
        x = nn.Dense(self.width, name="embedding", **DTYPE)(patches)
        shape = (self.rows, self.rows, self.width)
        table = self.param("pos_embedding", nn.initializers.normal(), shape, jnp.float64)
        positions = []
        for height, width in grids.tolist():
            resized = jax.image.resize(table, (height, width, self.width), "bilinear", antialias=True)
            resized = resized.reshape(-1, self.width)
            positions.append(jnp.pad(resized, ((0, x.shape[1] - len(resized)), (0, 0))))
        x = x + jnp.stack(positions)
        both = mask[:, None, :, None] & mask[:, None, None, :]
        x = Encoder(self.depth, self.heads, self.mlp_dim, old=False, scan=self.scan, name="Transformer")(x, both)
        return MAPHead(self.heads, self.mlp_dim, name="MAPHead_0")(x, mask[:, None, None, :])


class BigVisionText(nn.Module):
    """google-research/big_vision's text tower (models/proj/image_text/text_transformer.py)."""

    width: int = 24
    depth: int = 2
    heads: int = 3
    mlp_dim: int = 40
    vocab_size: int = 50
    pool_type: str = "last"
    num_classes: int = 24
    scan: bool = False

    @nn.compact
    def __call__(self, tokens: Array) -> Array:
        x = nn.Embed(self.vocab_size, self.width, name="Embed_0", **DTYPE)(tokens)
        x = x + self.param("pos_embedding", nn.initializers.normal(), (1, *x.shape[1:]), jnp.float64)
        x = Encoder(self.depth, self.heads, self.mlp_dim, old=False, scan=self.scan, name="Encoder_0")(x)
        if self.pool_type == "map":
            x = MAPHead(self.heads, self.mlp_dim, name="MAPHead_0")(x)
        else:
            x = {"last": x[:, -1], "first": x[:, 0], "gap": x.mean(1), "gmp": x.max(1)}[self.pool_type]
        return nn.Dense(self.num_classes, name="head", **DTYPE)(x)


class BigVisionTwoTowers(nn.Module):
    """google-research/big_vision's two-tower models (models/proj/image_text/two_towers.py)."""

    image: nn.Module
    text: nn.Module
    bias: bool = True

    def setup(self) -> None:
        self.img, self.txt = self.image.clone(), self.text.clone()
        self.t = self.param("t", nn.initializers.constant(2.3), (1,), jnp.float64)
        if self.bias:
            self.b = self.param("b", nn.initializers.constant(-10.0), (1,), jnp.float64)

    def __call__(self, images: Array, tokens: Array) -> Array:
        image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (self.img(images), self.txt(tokens)))
        logits = jnp.dot(image, text.T) * jnp.exp(self.t)
        return logits + self.b if self.bias else logits
