"""The tables of every family in one: presets of vision models, and of models with a text tower, by name."""

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

__all__ = ["PRESETS", "TIMM_MODELS", "TWO_TOWERS"]

# architectures that timm.create_model builds
TIMM_MODELS: dict[str, Preset[ViTConfig]] = {
    **VIT_MODELS,
    **DEIT_MODELS,
    **CLIP_MODELS,
    **SIGLIP_MODELS,
    **FOUNDATION_MODELS,
    **EVA_MODELS,
    **BEIT_MODELS,
    **WINDOWED_MODELS,
    **HIERA_MODELS,
}

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
