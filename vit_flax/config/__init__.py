"""The frozen description of a model and of its families. Neither jax nor torch is imported here."""

from vit_flax.config.drop import NO_DROPS, DropRates
from vit_flax.config.families import (
    FAMILIES,
    BeitConfig,
    LucidrainsViTConfig,
    NaFlexViTConfig,
    PlainViTConfig,
    RopeViTConfig,
    T2TViTConfig,
    ViTFamily,
    config_from_dict,
)
from vit_flax.config.part import Part
from vit_flax.config.position import GRID_INDEXINGS, ROPE_TYPES, KeyMask, NoPosition, Position, RelativeBias, Rotation
from vit_flax.config.tokens import (
    TOKENS_TYPES,
    NormedPatches,
    PaddedPatches,
    Patches,
    SoftSplits,
    Tokens,
    softsplit_size,
)
from vit_flax.config.vit import (
    ATTENTION_POOLS,
    BLOCK_LIMITS,
    BLOCKS,
    FIXED_POS_EMBEDS,
    GLOBAL_POOLS,
    MLP_LAYERS,
    NORM_LAYERS,
    POS_EMBEDS,
    ViTConfig,
)

__all__ = [
    "ATTENTION_POOLS",
    "BLOCKS",
    "BLOCK_LIMITS",
    "FAMILIES",
    "FIXED_POS_EMBEDS",
    "GLOBAL_POOLS",
    "GRID_INDEXINGS",
    "MLP_LAYERS",
    "NORM_LAYERS",
    "NO_DROPS",
    "POS_EMBEDS",
    "ROPE_TYPES",
    "TOKENS_TYPES",
    "BeitConfig",
    "DropRates",
    "KeyMask",
    "LucidrainsViTConfig",
    "NaFlexViTConfig",
    "NoPosition",
    "NormedPatches",
    "PaddedPatches",
    "Part",
    "Patches",
    "PlainViTConfig",
    "Position",
    "RelativeBias",
    "RopeViTConfig",
    "Rotation",
    "SoftSplits",
    "T2TViTConfig",
    "Tokens",
    "ViTConfig",
    "ViTFamily",
    "config_from_dict",
    "softsplit_size",
]
