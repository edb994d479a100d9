"""Named configurations: numbers only."""

from __future__ import annotations

import difflib

from vit_flax.config import T2TViTConfig, ViTConfig


def _vit(width: int, depth: int, heads: int, patch: int, image: int = 224) -> ViTConfig:
    return ViTConfig(image_size=image, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads)  # pyright: ignore[reportArgumentType]


PRESETS: dict[str, ViTConfig] = {
    "vit_tiny_patch16_224": _vit(192, 12, 3, 16),
    "vit_tiny_patch16_384": _vit(192, 12, 3, 16, 384),
    "vit_small_patch32_224": _vit(384, 12, 6, 32),
    "vit_small_patch16_224": _vit(384, 12, 6, 16),
    "vit_small_patch16_384": _vit(384, 12, 6, 16, 384),
    "vit_base_patch32_224": _vit(768, 12, 12, 32),
    "vit_base_patch16_224": _vit(768, 12, 12, 16),
    "vit_base_patch16_384": _vit(768, 12, 12, 16, 384),
    "vit_base_patch8_224": _vit(768, 12, 12, 8),
    "vit_large_patch32_224": _vit(1024, 24, 16, 32),
    "vit_large_patch16_224": _vit(1024, 24, 16, 16),
    "vit_large_patch16_384": _vit(1024, 24, 16, 16, 384),
    "vit_huge_patch14_224": _vit(1280, 32, 16, 14),
    # the tutorial's defaults
    "explained_vit": ViTConfig(
        image_size=(400, 100), patch_size=(50, 50), in_chans=1, num_classes=1, num_heads=1, qkv_bias=False,
        value_skip=True, norm_eps=1e-5, pos_embed="sinusoid",
    ),
    "explained_t2t_vit": T2TViTConfig(
        image_size=(1700, 500), softsplit_kernels=(31, 3, 3), in_chans=1, num_classes=1, num_heads=1, qkv_bias=False,
        value_skip=True, norm_eps=1e-5, pos_embed="sinusoid",
    ),
}  # fmt: skip


def get_preset(name: str) -> ViTConfig:
    """Returns the config of that name.

    Raises:
        ValueError: there is none; the nearest names are suggested.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(PRESETS)}"
        raise ValueError(f"no preset named {name!r}; {hint}")
    return PRESETS[name]
