"""Published repositories on the Hugging Face hub, under their own names and with the numerics of transformers.

Preprocessing is that of each family's publication, written down by hand: no test has read the repositories' own
preprocessor_config.json.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vit_flax.config import RopeViTConfig, ViTConfig
from vit_flax.presets.preset import CLIP, IMAGENET, INCEPTION, Normalisation, Preset, vit

SATELLITE: Normalisation = (0.430, 0.411, 0.296), (0.213, 0.156, 0.143)

BASE, SMALL, TINY, LARGE, HUGE = (768, 12, 12), (384, 12, 6), (192, 12, 3), (1024, 24, 16), (1280, 32, 16)
SO400M, GIANT_OPT, GIANT = (1152, 27, 16), (1536, 40, 16), (1536, 40, 24)  # width, depth, heads
_NAMES = {"tiny": TINY, "small": SMALL, "base": BASE, "large": LARGE, "huge": HUGE, "giant": GIANT}

VIT = {"norm_eps": 1e-12}
DINOV2 = {"init_values": 1.0, "mask_token": True}
REGISTERS = {**DINOV2, "reg_tokens": 4, "no_embed_reg": True}
GATED = {"mlp_layer": "swiglu_packed", "mlp_ratio": 8 / 3, "activation": "silu"}
DINOV3 = {"reg_tokens": 4, "mask_token": True, "num_classes": 0}
GATED_DINOV3 = {**DINOV3, "mlp_layer": "swiglu", "activation": "silu"}
OPENAI = {
    "norm_eps": 1e-5, "activation": "quick_gelu", "pre_norm": True, "patch_bias": False, "fc_norm": True,
    "head_bias": False,
}  # fmt: skip
SIGLIP = {"class_token": False, "global_pool": "map", "activation": "gelu_tanh", "num_classes": 0}
IJEPA = {"class_token": False, "global_pool": "avg", "num_classes": 0}


def row(config: ViTConfig, normalisation: Normalisation, licence: str | None = "apache-2.0", **fields: Any) -> Preset:
    """Returns the preset of a repository; `fields` are those of a preprocessing other than a centre crop."""
    mean, std = normalisation
    return Preset(config=config, mean=mean, std=std, licence=licence, **fields)


def _rope(width: int, depth: int, heads: int, **fields: Any) -> ViTConfig:
    return RopeViTConfig(embed_dim=width, depth=depth, num_heads=heads, **fields)


SQUASHED: dict[str, Any] = {"crop_mode": "squash", "interpolation": "bilinear"}  # the aspect ratio is ignored


CROPPED = 224 / 256  # the centre of an image whose shorter side is 256


def _google_vit() -> dict[str, Preset]:
    sizes = {"base-patch16": (BASE, 16), "large-patch16": (LARGE, 16), "large-patch32": (LARGE, 32)}
    sizes |= {"base-patch32": (BASE, 32), "huge-patch14": (HUGE, 14)}
    tuned = ("base-patch16-224", "base-patch16-384", "base-patch32-384", "large-patch16-224", "large-patch16-384",
             "large-patch32-384")  # fmt: skip
    rows = {}
    for name in tuned:
        size, patch = sizes[name[:-4]]
        rows[name] = vit(*size, patch, int(name[-3:]), **VIT)
    for name, (size, patch) in sizes.items():  # with the pre-trained pooler and no head
        rows[f"{name}-224-in21k"] = vit(*size, patch, 224, num_classes=0, representation_size=size[0], **VIT)
    return {f"google/vit-{name}": row(config, INCEPTION, **SQUASHED) for name, config in rows.items()}


def _deit() -> dict[str, Preset]:
    rows = {f"{name}-patch16-224": vit(*_NAMES[name], 16, 224, **VIT) for name in ("tiny", "small", "base")}
    rows["base-patch16-384"] = vit(*BASE, 16, 384, **VIT)
    for name in list(rows):
        size, _, rest = name.partition("-")
        rows[f"{size}-distilled-{rest}"] = rows[name].replace(dist_token=True, head_dist=True)
    crops = {224: CROPPED, 384: 384 / 438}
    return {
        f"facebook/deit-{name}": row(config, IMAGENET, crop_pct=crops[config.image_size[0]])
        for name, config in rows.items()
    }


def _dino() -> dict[str, Preset]:
    return {
        f"facebook/dino-vit{letter}{patch}": row(vit(*size, patch, 224, num_classes=0, **VIT), IMAGENET, **SQUASHED)
        for letter, size in (("s", SMALL), ("b", BASE))
        for patch in (16, 8)
    }


def _dinov2() -> dict[str, Preset]:
    presets = {}
    for kind, fields in (("dinov2", DINOV2), ("dinov2-with-registers", REGISTERS)):
        for name in ("small", "base", "large", "giant"):
            more = {**fields, **(GATED if name == "giant" else {})}
            backbone = vit(*_NAMES[name], 14, 518, num_classes=0, **more)
            classifier = backbone.replace(num_classes=1000, global_pool="token_avg")
            presets[f"facebook/{kind}-{name}"] = row(backbone, IMAGENET, crop_pct=CROPPED)
            presets[f"facebook/{kind}-{name}-imagenet1k-1-layer"] = row(classifier, IMAGENET, crop_pct=CROPPED)
    return presets


def _dinov3() -> dict[str, Preset]:
    giant = _rope(4096, 40, 32, **GATED_DINOV3, mlp_ratio=2, qkv_bias=False)
    rows = {
        "vits16": _rope(*SMALL, **DINOV3),
        "vits16plus": _rope(*SMALL, **GATED_DINOV3),
        "vitb16": _rope(*BASE, **DINOV3),
        "vitl16": _rope(*LARGE, **DINOV3),
        "vith16plus": _rope(1280, 32, 20, **GATED_DINOV3),
        "vit7b16": giant,
    }
    licence = "dinov3-license"
    return {
        **{
            f"facebook/dinov3-{name}-pretrain-lvd1689m": row(config, IMAGENET, licence, **SQUASHED)
            for name, config in rows.items()
        },
        **{
            f"facebook/dinov3-{name}-pretrain-sat493m": row(rows[name], SATELLITE, licence, **SQUASHED)
            for name in ("vitl16", "vit7b16")
        },
    }


def _clip() -> dict[str, Preset]:
    rows = {
        "base-patch32": vit(*BASE, 32, 224, num_classes=512, **OPENAI),
        "base-patch16": vit(*BASE, 16, 224, num_classes=512, **OPENAI),
        "large-patch14": vit(*LARGE, 14, 224, num_classes=768, **OPENAI),
        "large-patch14-336": vit(*LARGE, 14, 336, num_classes=768, **OPENAI),
    }
    return {f"openai/clip-vit-{name}": row(config, CLIP, "mit") for name, config in rows.items()}


def _siglip() -> dict[str, Preset]:
    def tower(size: tuple[int, int, int], patch: int, image: int) -> ViTConfig:
        ratio = {"mlp_ratio": 4304 / 1152} if size == SO400M else {}
        return vit(*size, patch, image, crop_to_patches=image % patch > 0, **ratio, **SIGLIP)

    first = {f"base-patch16-{image}": tower(BASE, 16, image) for image in (224, 256, 384, 512)}
    first |= {f"large-patch16-{image}": tower(LARGE, 16, image) for image in (256, 384)}
    first |= {f"so400m-patch14-{image}": tower(SO400M, 14, image) for image in (224, 384)}
    second = {**first, "large-patch16-512": tower(LARGE, 16, 512), "base-patch32-256": tower(BASE, 32, 256)}
    second |= {f"so400m-patch16-{image}": tower(SO400M, 16, image) for image in (256, 384, 512)}
    second |= {f"giant-opt-patch16-{image}": tower(GIANT_OPT, 16, image) for image in (256, 384)}
    first |= {
        "base-patch16-256-multilingual": tower(BASE, 16, 256),
        "so400m-patch16-256-i18n": tower(SO400M, 16, 256),
    }
    return {
        **{f"google/siglip-{name}": row(c, INCEPTION, crop_mode="squash") for name, c in first.items()},
        **{f"google/siglip2-{name}": row(c, INCEPTION, **SQUASHED) for name, c in second.items()},
    }


def _masked() -> dict[str, Preset]:
    mae = {"num_classes": 0, "pos_embed": "sincos_2d", **VIT}
    patches = {"base": 16, "large": 16, "huge": 14}
    return {
        f"facebook/vit-mae-{name}": row(vit(*_NAMES[name], patch, 224, **mae), IMAGENET, **SQUASHED)
        for name, patch in patches.items()
    }


def _ijepa() -> dict[str, Preset]:
    rows = {
        "vith14_1k": vit(*HUGE, 14, 224, **IJEPA),
        "vith14_22k": vit(*HUGE, 14, 224, **IJEPA),
        "vith16_1k": vit(*HUGE, 16, 448, **IJEPA),
        "vitg16_22k": vit(1408, 40, 16, 16, 224, mlp_ratio=48 / 11, **IJEPA),
    }
    return {f"facebook/ijepa_{name}": row(c, INCEPTION, "cc-by-nc-4.0", **SQUASHED) for name, c in rows.items()}


_ALL = {
    **_google_vit(), **_deit(), **_dino(), **_dinov2(), **_dinov3(), **_clip(), **_siglip(), **_masked(), **_ijepa(),
}  # fmt: skip
HUGGINGFACE_MODELS: dict[str, Preset] = {
    name: dataclasses.replace(preset, source=name) for name, preset in _ALL.items()
}
