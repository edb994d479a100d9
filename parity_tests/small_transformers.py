"""Image models of transformers, small and with random weights: one of each family."""

from __future__ import annotations

from typing import Any

from parity_tests.peers import import_transformers
from parity_tests.random_weights import randomise

_SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "image_size": 24,
    "patch_size": 8,
}  # fmt: skip
_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "vit": ("ViTConfig", "ViTModel", {}),
    "dinov2": ("Dinov2Config", "Dinov2Model", {}),
    "dinov3": ("DINOv3ViTConfig", "DINOv3ViTModel", {"num_register_tokens": 2}),
    "beit": ("BeitConfig", "BeitModel", {"use_relative_position_bias": True}),
    "clip": ("CLIPVisionConfig", "CLIPVisionModel", {}),
    "siglip": ("SiglipVisionConfig", "SiglipVisionModel", {}),
    "ijepa": ("IJepaConfig", "IJepaModel", {}),
}
FAMILIES = tuple(_FAMILIES)


def small_transformer(family: str, folder: Any, **settings: Any) -> Any:
    """Returns the model of a family in float64, for images of 24 x 24 pixels, and saves it to a folder."""
    transformers = import_transformers()
    config, kind, changes = _FAMILIES[family]
    sizes = {name: size for name, size in _SIZES.items() if family != "dinov2" or name != "intermediate_size"}
    told = getattr(transformers, config)(**{**sizes, **changes}, **settings)
    model = randomise(getattr(transformers, kind)(told)).double().eval()
    model.save_pretrained(folder)
    return model
