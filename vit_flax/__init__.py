"""PyTorch's Vision Transformers rebuilt in Flax linen and proven equal.

Names are imported lazily, so that `vit-flax inspect` of a broken file need not wait for JAX.
"""

import sys
import warnings
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_flax.array_writer import ArrayWriter
    from vit_flax.attention_weights import attention_maps
    from vit_flax.classifier import reset_classifier
    from vit_flax.config import LucidrainsViTConfig, T2TViTConfig, TextConfig, TwoTowersConfig, ViTConfig
    from vit_flax.convert import ConversionError
    from vit_flax.export.exporting import export_model
    from vit_flax.hub import push_to_hub
    from vit_flax.image_sizes import at_image_size
    from vit_flax.inference import Predictor
    from vit_flax.models import (
        LucidrainsViT,
        T2TViT,
        TextTransformer,
        TwoTowers,
        VisionTransformer,
        trainable_mask,
        weight_decay_mask,
    )
    from vit_flax.models.intermediates import Intermediates
    from vit_flax.preparing import read_preprocessing
    from vit_flax.preprocessing.evaluation import Preprocessing
    from vit_flax.pretrained import create_model, fit_layout, from_state_dict, load, save, to_state_dict
    from vit_flax.tokenizing import read_tokenizer
    from vit_flax.zero_shot import retrieval_recall, zero_shot_classifier

__version__ = "0.1.0"

__all__ = [
    "ArrayWriter",
    "ConversionError",
    "Intermediates",
    "LucidrainsViT",
    "LucidrainsViTConfig",
    "Predictor",
    "Preprocessing",
    "T2TViT",
    "T2TViTConfig",
    "TextConfig",
    "TextTransformer",
    "TwoTowers",
    "TwoTowersConfig",
    "ViTConfig",
    "VisionTransformer",
    "at_image_size",
    "attention_maps",
    "create_model",
    "export_model",
    "fit_layout",
    "from_state_dict",
    "load",
    "push_to_hub",
    "read_preprocessing",
    "read_tokenizer",
    "reset_classifier",
    "retrieval_recall",
    "save",
    "to_state_dict",
    "trainable_mask",
    "weight_decay_mask",
    "zero_shot_classifier",
]

_MODULES = {
    "vit_flax.array_writer": ("ArrayWriter",),
    "vit_flax.attention_weights": ("attention_maps",),
    "vit_flax.classifier": ("reset_classifier",),
    "vit_flax.config": ("LucidrainsViTConfig", "T2TViTConfig", "TextConfig", "TwoTowersConfig", "ViTConfig"),
    "vit_flax.convert": ("ConversionError",),
    "vit_flax.export.exporting": ("export_model",),
    "vit_flax.hub": ("push_to_hub",),
    "vit_flax.image_sizes": ("at_image_size",),
    "vit_flax.inference": ("Predictor",),
    "vit_flax.models": (
        "LucidrainsViT", "T2TViT", "TextTransformer", "TwoTowers", "VisionTransformer", "trainable_mask",
        "weight_decay_mask",
    ),
    "vit_flax.models.intermediates": ("Intermediates",),
    "vit_flax.preparing": ("read_preprocessing",),
    "vit_flax.preprocessing.evaluation": ("Preprocessing",),
    "vit_flax.pretrained": ("create_model", "fit_layout", "from_state_dict", "load", "save", "to_state_dict"),
    "vit_flax.tokenizing": ("read_tokenizer",),
    "vit_flax.zero_shot": ("retrieval_recall", "zero_shot_classifier"),
}  # fmt: skip
_HOMES = {name: module for module, names in _MODULES.items() for name in names}


def _warn_of_namesake(folders: list[str]) -> None:
    """Warns where PyPI's project 'vit-flax' is installed as well, whose modules overwrite this package's."""
    for folder in folders:
        if next(Path(folder).glob("vit_flax-*.dist-info"), None):
            warnings.warn(
                f"the project 'vit-flax' in {folder} writes its modules over those of vit-linen, which this is: "
                "pip uninstall vit-flax vit-linen, then install vit-linen again",
                stacklevel=3,
            )


_warn_of_namesake([str(Path(__file__).parents[1]), *(folder for folder in sys.path if folder.endswith("-packages"))])


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vit_flax' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
