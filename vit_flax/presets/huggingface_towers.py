"""Repositories on the Hugging Face hub whose image towers differ from others by names and single fields.

Sizes are those of transformers' conversion scripts and of the defaults of its configuration classes.
"""

from __future__ import annotations

import dataclasses

from vit_flax.config import RopeViTConfig, ViTConfig
from vit_flax.presets.huggingface import (
    BASE,
    CROPPED,
    GATED,
    GIANT,
    HUGE,
    LARGE,
    OPENAI,
    SMALL,
    SO400M,
    SQUASHED,
    row,
)
from vit_flax.presets.preset import CLIP, IMAGENET, UNIT, Preset, vit

BIGG = (1664, 48, 16)


def _metaclip2() -> dict[str, Preset]:
    exact, bigg = {**OPENAI, "activation": "gelu"}, {"mlp_ratio": 64 / 13}
    rows = {
        "huge-quickgelu": vit(*HUGE, 14, 224, num_classes=1024, **OPENAI),
        "huge-378": vit(*HUGE, 14, 378, num_classes=1024, **exact),
        "giant": vit(*BIGG, 14, 224, num_classes=1280, **exact, **bigg),
        "giant-378": vit(*BIGG, 14, 378, num_classes=1280, **exact, **bigg),
    }
    prefix, licence = "facebook/metaclip-2-worldwide-", "cc-by-nc-4.0"
    return {f"{prefix}{name}": row(config, CLIP, licence, crop_mode="squash") for name, config in rows.items()}


def _other_clips() -> dict[str, Preset]:
    large = vit(*LARGE, 14, 224, num_classes=768, **OPENAI)
    towers = {"base-patch32": (BASE, 32, 768), "base-patch16": (BASE, 16, 768), "large-patch14": (LARGE, 14, 840)}
    return {
        "OFA-Sys/chinese-clip-vit-base-patch16": row(vit(*BASE, 16, 224, num_classes=512, **OPENAI), CLIP, None),
        "OFA-Sys/chinese-clip-vit-large-patch14": row(large, CLIP, None),
        "BAAI/AltCLIP": row(large, CLIP, "creativeml-openrail-m"),
        **{
            f"google/owlvit-{name}": row(vit(*size, patch, image, num_classes=0, **OPENAI), CLIP, crop_mode="squash")
            for name, (size, patch, image) in towers.items()
        },
    }


def _msn() -> dict[str, Preset]:
    rows = {"small": (SMALL, 16), "base": (BASE, 16), "large": (LARGE, 16), "base-4": (BASE, 4), "large-7": (LARGE, 7)}
    return {
        f"facebook/vit-msn-{name}": row(vit(*size, patch, 224, num_classes=0), IMAGENET, crop_pct=CROPPED)
        for name, (size, patch) in rows.items()
    }


def _mlcd() -> dict[str, Preset]:
    fields = {
        "pre_norm": True, "fc_norm": True, "patch_bias": False, "key_bias": True, "init_values": None,
        "rope_type": "cat", "rope_theta": 10000.0, "rope_class_token": True, "num_classes": 0, "mlp_ratio": 64 / 13,
    }  # fmt: skip
    width, depth, heads = BIGG

    def tower(image: int) -> ViTConfig:
        sizes = {"image_size": (image, image), "patch_size": (14, 14)}
        return RopeViTConfig(embed_dim=width, depth=depth, num_heads=heads, **sizes, **fields)

    return {f"DeepGlint-AI/mlcd-vit-bigG-patch14-{size}": row(tower(size), CLIP) for size in (336, 448)}


def _tipsv2() -> dict[str, Preset]:
    fields = {"init_values": 1.0, "mask_token": True, "reg_tokens": 1, "no_embed_reg": True, "num_classes": 0}
    rows = {
        "b14": vit(*BASE, 14, 448, **fields),
        "l14": vit(*LARGE, 14, 448, **fields),
        "so400m14": vit(*SO400M, 14, 448, mlp_ratio=4304 / 1152, **fields),
        "g14": vit(*GIANT, 14, 448, **fields, **GATED),
    }
    return {f"google/tipsv2-{name}": row(config, UNIT, **SQUASHED) for name, config in rows.items()}


def _pixio() -> dict[str, Preset]:
    tokens = {"class_token": False, "reg_tokens": 8, "num_classes": 0, "global_pool": "prefix_avg"}
    return {"facebook/pixio-huge": row(vit(*HUGE, 16, 256, **tokens), IMAGENET, None, **SQUASHED)}


_ALL = {**_metaclip2(), **_other_clips(), **_msn(), **_mlcd(), **_tipsv2(), **_pixio()}
HUGGINGFACE_TOWERS: dict[str, Preset] = {
    name: dataclasses.replace(preset, source=name) for name, preset in _ALL.items()
}
