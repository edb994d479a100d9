"""Linen modules, one file for each component of the PyTorch reference."""

from typing import Any, overload

from vit_flax.config import ModelConfig, TwoTowersConfig, ViTConfig
from vit_flax.models.attention import Attention
from vit_flax.models.attention_backends import attention_backend
from vit_flax.models.attention_pool import AttentionPool
from vit_flax.models.block import Block
from vit_flax.models.layer_scale import LayerScale
from vit_flax.models.linear import Linear
from vit_flax.models.masks import no_weight_decay, trainable_mask, weight_decay_mask
from vit_flax.models.mlp import Mlp
from vit_flax.models.norm import LayerNorm, RMSNorm
from vit_flax.models.patch_embed import PatchEmbed
from vit_flax.models.pos_embed import simple_sincos_2d, sincos_2d, sinusoid_1d
from vit_flax.models.precision import Precision
from vit_flax.models.swiglu import SwiGLU
from vit_flax.models.text_transformer import TextTransformer
from vit_flax.models.tokens_to_token import TokensToToken, TokenTransformer
from vit_flax.models.two_towers import TwoTowers
from vit_flax.models.vision_transformer import VisionTransformer

__all__ = [
    "Attention",
    "AttentionPool",
    "Beit",
    "Block",
    "LayerNorm",
    "LayerScale",
    "Linear",
    "LucidrainsViT",
    "Mlp",
    "NaFlexViT",
    "PatchEmbed",
    "Precision",
    "RMSNorm",
    "RopeViT",
    "SwiGLU",
    "T2TViT",
    "TextTransformer",
    "TokenTransformer",
    "TokensToToken",
    "TwoTowers",
    "VisionTransformer",
    "attention_backend",
    "build_model",
    "no_weight_decay",
    "simple_sincos_2d",
    "sincos_2d",
    "sinusoid_1d",
    "trainable_mask",
    "weight_decay_mask",
]

# a family is a pair of parts of the config: these are the one model under the names that it had
T2TViT = LucidrainsViT = RopeViT = Beit = NaFlexViT = VisionTransformer


@overload
def build_model(config: ViTConfig, **runtime: object) -> VisionTransformer: ...
@overload
def build_model(config: TwoTowersConfig, **runtime: object) -> TwoTowers: ...
def build_model(config: ModelConfig, **runtime: object) -> VisionTransformer | TwoTowers:
    """Returns the linen module that `config` describes; `runtime` is dtype, param_dtype and precision."""
    fields: dict[str, Any] = runtime
    return TwoTowers(config, **fields) if isinstance(config, TwoTowersConfig) else VisionTransformer(config, **fields)
