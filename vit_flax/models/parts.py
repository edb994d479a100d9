"""The linen side of the two parts of a config: one line for each kind."""

from __future__ import annotations

from collections.abc import Callable

import flax.linen as nn

from vit_flax.config import (
    KeyMask,
    NoPosition,
    NormedPatches,
    OverlappingPatches,
    PaddedPatches,
    Part,
    Patches,
    RelativeBias,
    RelativeWindows,
    RotatedWindows,
    Rotation,
    SoftSplits,
    StagedWindows,
    TextMask,
    ViTConfig,
)
from vit_flax.models.key_mask import MaskedKeys
from vit_flax.models.normed_patches import NormedPatchEmbed
from vit_flax.models.overlapping_patches import OverlappingPatchEmbed
from vit_flax.models.padded_patches import PaddedPatchEmbed
from vit_flax.models.patch_embed import build_patch_embed
from vit_flax.models.position import Positions
from vit_flax.models.precision import Precision
from vit_flax.models.relative_position_bias import RelativePositions
from vit_flax.models.rotation import RotaryPositions
from vit_flax.models.staged_windows import StagedWindowPositions
from vit_flax.models.text_mask import TextMasks
from vit_flax.models.tokens_to_token import TokensToToken
from vit_flax.models.windows import RelativeWindowPositions, RotatedWindowPositions

# how an image becomes tokens: of a config and the dtypes, the module that makes them
TOKENIZERS: dict[type[Part], Callable[[ViTConfig, Precision], nn.Module]] = {
    Patches: build_patch_embed,
    NormedPatches: NormedPatchEmbed,
    OverlappingPatches: OverlappingPatchEmbed,
    PaddedPatches: PaddedPatchEmbed,
    SoftSplits: TokensToToken,
}
# how attention learns where a token is
POSITIONS: dict[type[Part], Callable[[ViTConfig, int], Positions]] = {
    NoPosition: Positions,
    Rotation: RotaryPositions,
    RelativeBias: RelativePositions,
    KeyMask: MaskedKeys,
    TextMask: TextMasks,
    RelativeWindows: RelativeWindowPositions,
    RotatedWindows: RotatedWindowPositions,
    StagedWindows: StagedWindowPositions,
}


def build_tokenizer(config: ViTConfig, precision: Precision) -> nn.Module:
    """Returns the module that makes tokens of images."""
    return TOKENIZERS[type(config.tokens)](config, precision)


def build_positions(config: ViTConfig, index: int = 0) -> Positions:
    """Returns what tells the attention of block `index` where a token is."""
    return POSITIONS[type(config.position)](config, index)
