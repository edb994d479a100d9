"""Two-tower models on the Hugging Face hub: the image tower's name and `_with_text`.

Sizes of the text towers are those of open_clip's configs of the same weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vit_flax.config import NaFlexViTConfig, TextConfig, TwoTowersConfig, ViTConfig
from vit_flax.presets.huggingface import BASE, HUGGINGFACE_MODELS, LARGE, SIGLIP, SO400M
from vit_flax.presets.huggingface_towers import HUGGINGFACE_TOWERS
from vit_flax.presets.preset import Preset

SUFFIX = "_with_text"
_SO400M_RATIO = 4304 / 1152
# width, depth, heads of a text tower by a part of the name
_CLIP = {"-base-": (512, 12, 8), "-large-": (768, 12, 12)}
_METACLIP2 = {"-huge-": (1024, 24, 16), "-giant": (1280, 32, 20)}
_SIGLIP = {"-base-": BASE, "-large-": LARGE, "-so400m-": SO400M, "-giant-opt-": SO400M}
_CONTEXTS = {"google/siglip-so400m-patch14-224": 16}  # others' is 64
_VOCABULARIES = {"google/siglip2-": 256_000, "-multilingual": 250_000, "-i18n": 250_000}  # others' has 32,000


def _of(name: str, sizes: dict[str, Any], default: Any = None) -> Any:
    return next((size for part, size in sizes.items() if part in name), default)


def _text(size: tuple[int, int, int], **fields: Any) -> TextConfig:
    width, depth, heads = size
    return TextConfig(embed_dim=width, depth=depth, num_heads=heads, **fields)


def _clip(name: str, image: ViTConfig) -> TwoTowersConfig:
    text = _text(_of(name, _CLIP), activation="quick_gelu", output_dim=image.num_classes)
    return TwoTowersConfig(image=image, text=text)


def _metaclip2(name: str, image: ViTConfig) -> TwoTowersConfig:
    end: dict[str, Any] = {"vocab_size": 901_629, "pool": "eos", "eos_token_id": 2}
    text = _text(_of(name, _METACLIP2), activation=image.activation, output_dim=image.num_classes, **end)
    return TwoTowersConfig(image=image, text=text)


def _siglip(name: str, image: ViTConfig) -> TwoTowersConfig:
    size = _of(name, _SIGLIP)
    text = _text(
        size, vocab_size=_of(name, _VOCABULARIES, 32_000), context_length=_CONTEXTS.get(name, 64),
        mlp_ratio=_SO400M_RATIO if size == SO400M else 4.0, activation="gelu_tanh", norm_eps=1e-6, causal=False,
        pool="last", output_dim=image.embed_dim, proj_bias=True,
    )  # fmt: skip
    return TwoTowersConfig(image=image, text=text, logit_bias=True)


def _naflex(name: str, size: tuple[int, int, int]) -> Preset[TwoTowersConfig]:
    width, depth, heads = size
    ratio = {"mlp_ratio": _SO400M_RATIO} if size == SO400M else {}
    fields = {name: value for name, value in SIGLIP.items() if name in NaFlexViTConfig.fields}
    image = NaFlexViTConfig(
        embed_dim=width, depth=depth, num_heads=heads, patch_size=(16, 16), image_size=(256, 256), **ratio, **fields
    )
    return Preset(config=_siglip(name, image), source=name, licence="apache-2.0")


_BUILDERS = {"openai/clip-": _clip, "facebook/metaclip-2-": _metaclip2, "google/siglip": _siglip}
_BOTH = {
    name: dataclasses.replace(preset, config=build(name, preset.config))
    for name, preset in {**HUGGINGFACE_MODELS, **HUGGINGFACE_TOWERS}.items()
    for start, build in _BUILDERS.items()
    if name.startswith(start)
}
_BOTH |= {
    name: _naflex(name, size)
    for name, size in (("google/siglip2-base-patch16-naflex", BASE), ("google/siglip2-so400m-patch16-naflex", SO400M))
}
# presets of two towers by name: the image tower's name and `_with_text`
TWO_TOWERS: dict[str, Preset[TwoTowersConfig]] = {f"{name}{SUFFIX}": preset for name, preset in _BOTH.items()}
