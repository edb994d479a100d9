"""PyTorch's Vision Transformers rebuilt in Flax linen and proven equal."""

from vit_flax.config import LucidrainsViTConfig, T2TViTConfig, ViTConfig
from vit_flax.convert import ConversionError
from vit_flax.models import LucidrainsViT, T2TViT, VisionTransformer, trainable_mask, weight_decay_mask
from vit_flax.pretrained import create_model, from_state_dict, load, save, to_state_dict

__version__ = "0.1.0"

__all__ = [
    "ConversionError",
    "LucidrainsViT",
    "LucidrainsViTConfig",
    "T2TViT",
    "T2TViTConfig",
    "ViTConfig",
    "VisionTransformer",
    "create_model",
    "from_state_dict",
    "load",
    "save",
    "to_state_dict",
    "trainable_mask",
    "weight_decay_mask",
]
