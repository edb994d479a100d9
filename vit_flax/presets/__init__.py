"""Named configurations: numbers only, one file a family.

Names are timm's, `architecture` or `architecture.weights`, and those of repositories on the Hugging Face hub,
`owner/name`; the numbers are checked against timm's and transformers' by the tests.
"""

from __future__ import annotations

from vit_flax.config import ViTConfig
from vit_flax.presets.beit import BEIT_MODELS
from vit_flax.presets.clip import CLIP_MODELS
from vit_flax.presets.deit import DEIT_MODELS
from vit_flax.presets.eva import EVA_MODELS
from vit_flax.presets.explained import EXPLAINED
from vit_flax.presets.foundation import FOUNDATION_MODELS
from vit_flax.presets.hiera import HIERA_MODELS, SAM2_ENCODERS
from vit_flax.presets.huggingface import HUGGINGFACE_MODELS
from vit_flax.presets.huggingface_towers import HUGGINGFACE_TOWERS
from vit_flax.presets.open_clip import OPEN_CLIP_MODELS
from vit_flax.presets.preset import Preset
from vit_flax.presets.siglip import SIGLIP_MODELS
from vit_flax.presets.t2t import T2T_MODELS
from vit_flax.presets.torchvision import TORCHVISION_MODELS
from vit_flax.presets.two_towers import TWO_TOWERS
from vit_flax.presets.vit import VIT_MODELS
from vit_flax.presets.windowed import SAM3_MODELS, SAM_ENCODERS, VITDET_MODELS, WINDOWED_MODELS
from vit_flax.suggestions import suggest

__all__ = ["PRESETS", "REFUSED", "TWO_TOWERS", "Preset", "find_preset", "get_preset"]

# presets of vision models by name; TWO_TOWERS are those with a text tower
PRESETS: dict[str, Preset[ViTConfig]] = {
    **VIT_MODELS,
    **DEIT_MODELS,
    **CLIP_MODELS,
    **SIGLIP_MODELS,
    **FOUNDATION_MODELS,
    **EVA_MODELS,
    **BEIT_MODELS,
    **OPEN_CLIP_MODELS,
    **TORCHVISION_MODELS,
    **T2T_MODELS,
    **HUGGINGFACE_MODELS,
    **HUGGINGFACE_TOWERS,
    **WINDOWED_MODELS,
    **VITDET_MODELS,
    **SAM3_MODELS,
    **HIERA_MODELS,
    **SAM2_ENCODERS,
    **SAM_ENCODERS,
    **EXPLAINED,
}

_NO_CONVOLUTION = "its tokens come from a convolutional network, which this library does not have"
_NO_GROUPS = (
    "several queries share a key, and LayerScale is after attention alone: this library does not have such a block"
)

# Names of other libraries' models that have no preset here, and the reason.
# fmt: off
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            "vit_base_mci_224", "vit_base_r26_s32_224", "vit_base_r50_s16_224", "vit_base_r50_s16_384",
            "vit_base_resnet26d_224", "vit_base_resnet50d_224", "vit_large_r50_s32_224", "vit_large_r50_s32_384",
            "vit_small_r26_s32_224", "vit_small_r26_s32_384", "vit_small_resnet26d_224",
            "vit_small_resnet50d_s16_224", "vit_tiny_r_s16_p8_224", "vit_tiny_r_s16_p8_384",
        ),
        _NO_CONVOLUTION,
    ),
    **dict.fromkeys(
        (
            "vit_base_patch16_sapiens2", "vit_large_patch16_sapiens2", "vit_huge_patch16_sapiens2",
            "vit_giant_patch16_sapiens2", "vit_5b_patch16_sapiens2",
        ),
        _NO_GROUPS,
    ),
}
# fmt: on


def find_preset(name: str | None) -> Preset | None:
    """Returns the preset of that name, of one tower or both, or None."""
    return None if name is None else PRESETS.get(name) or TWO_TOWERS.get(name)


def get_preset(name: str) -> Preset:
    """Returns the preset of that name.

    Raises:
        ValueError: there is none; the reason is given or the nearest names are suggested.
    """
    if found := find_preset(name):
        return found
    if reason := REFUSED.get(name.split(".")[0]):
        raise ValueError(f"no preset {name!r}: {reason}")
    hint = suggest(name, {**PRESETS, **TWO_TOWERS}, "`vit-flax list presets` lists them", count=3)
    raise ValueError(f"no preset named {name!r}; {hint}")
