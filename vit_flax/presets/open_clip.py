"""open_clip's own image towers with their projection: `open_clip_` and open_clip's name in lower case.

timm has the same towers under names of its own, with a head that has a bias.
"""

from typing import Any

from vit_flax.presets.preset import CLIP, IMAGENET, Preset, vit

_CLIPA = {"pre_norm": False, "global_pool": "avg", "fc_norm": True}


def _tower(width: int, depth: int, heads: int, patch: int, image: int, embed_dim: int, **fields: Any) -> Preset:
    clipa = fields.get("pre_norm") is False
    shared = {"norm_eps": 1e-5, "pre_norm": True, "patch_bias": False, "head_bias": False, "num_classes": embed_dim}
    mean, std = IMAGENET if clipa else CLIP
    return Preset(
        config=vit(width, depth, heads, patch, image, **{**shared, **fields}),
        mean=mean,
        std=std,
        interpolation="bilinear" if clipa else "bicubic",
        crop_mode="squash" if clipa else "center",
    )


_QUICK = {"activation": "quick_gelu"}
_BIG_G = {"mlp_ratio": 4.9231}

# fmt: off
OPEN_CLIP_MODELS = {
    # width, depth, heads, patch, image, width of the joint embedding space
    "open_clip_vit_s_32": _tower(384, 12, 6, 32, 224, 384),
    "open_clip_vit_s_32_alt": _tower(384, 12, 6, 32, 224, 256),
    "open_clip_vit_s_16": _tower(384, 12, 6, 16, 224, 384),
    "open_clip_vit_s_16_alt": _tower(384, 12, 6, 16, 224, 256),
    "open_clip_vit_m_32": _tower(512, 12, 8, 32, 224, 512),
    "open_clip_vit_m_32_alt": _tower(512, 12, 8, 32, 224, 384),
    "open_clip_vit_m_16": _tower(512, 12, 8, 16, 224, 512),
    "open_clip_vit_m_16_alt": _tower(512, 12, 8, 16, 224, 384, init_values=1e-4),
    "open_clip_vit_b_32": _tower(768, 12, 12, 32, 224, 512),
    "open_clip_vit_b_32_quickgelu": _tower(768, 12, 12, 32, 224, 512, **_QUICK),
    "open_clip_vit_b_32_256": _tower(768, 12, 12, 32, 256, 512),
    "open_clip_vit_b_32_plus_256": _tower(896, 12, 14, 32, 256, 640),
    "open_clip_vit_b_16": _tower(768, 12, 12, 16, 224, 512),
    "open_clip_vit_b_16_quickgelu": _tower(768, 12, 12, 16, 224, 512, **_QUICK),
    "open_clip_vit_b_16_plus": _tower(896, 12, 14, 16, 224, 640),
    "open_clip_vit_b_16_plus_240": _tower(896, 12, 14, 16, 240, 640),
    "open_clip_vit_l_16": _tower(1024, 24, 16, 16, 224, 768),
    "open_clip_vit_l_16_320": _tower(1024, 24, 16, 16, 320, 768),
    "open_clip_vit_l_14": _tower(1024, 24, 16, 14, 224, 768),
    "open_clip_vit_l_14_quickgelu": _tower(1024, 24, 16, 14, 224, 768, **_QUICK),
    "open_clip_vit_l_14_280": _tower(1024, 24, 16, 14, 280, 768),
    "open_clip_vit_l_14_336": _tower(1024, 24, 16, 14, 336, 768),
    "open_clip_vit_l_14_336_quickgelu": _tower(1024, 24, 16, 14, 336, 768, **_QUICK),
    "open_clip_vit_l_14_clipa": _tower(1024, 24, 16, 14, 224, 768, **_CLIPA),
    "open_clip_vit_l_14_clipa_336": _tower(1024, 24, 16, 14, 336, 768, **_CLIPA),
    "open_clip_vit_h_16": _tower(1280, 32, 16, 16, 224, 1024),
    "open_clip_vit_h_14": _tower(1280, 32, 16, 14, 224, 1024),
    "open_clip_vit_h_14_quickgelu": _tower(1280, 32, 16, 14, 224, 1024, **_QUICK),
    "open_clip_vit_h_14_378": _tower(1280, 32, 16, 14, 378, 1024),
    "open_clip_vit_h_14_378_quickgelu": _tower(1280, 32, 16, 14, 378, 1024, **_QUICK),
    "open_clip_vit_h_14_clipa": _tower(1280, 32, 16, 14, 224, 1024, **_CLIPA),
    "open_clip_vit_h_14_clipa_336": _tower(1280, 32, 16, 14, 336, 1024, **_CLIPA),
    "open_clip_vit_g_14": _tower(1408, 40, 16, 14, 224, 1024, mlp_ratio=4.3637),
    "open_clip_vit_bigg_14": _tower(1664, 48, 16, 14, 224, 1280, **_BIG_G),
    "open_clip_vit_bigg_14_quickgelu": _tower(1664, 48, 16, 14, 224, 1280, **_BIG_G, **_QUICK),
    "open_clip_vit_bigg_14_clipa": _tower(1664, 48, 16, 14, 224, 1280, **_BIG_G, **_CLIPA),
    "open_clip_vit_bigg_14_clipa_336": _tower(1664, 48, 16, 14, 336, 1280, **_BIG_G, **_CLIPA),
    "open_clip_vit_e_14": _tower(1792, 56, 16, 14, 224, 1280, mlp_ratio=8.5715),
}
# fmt: on
