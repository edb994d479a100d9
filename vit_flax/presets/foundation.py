"""Backbones trained without labels or with many objectives: DINOv2, TIPSv2, AIMv2, BEiT-3, RADIO, InternViT."""

from vit_flax.config import ViTConfig
from vit_flax.presets.preset import CLIP, IMAGENET, UNIT, Weights, collect, vit, weights

AIMV2 = {
    "norm_layer": "rmsnorm",
    "norm_eps": 1e-5,
    "patch_norm": True,
    "mlp_layer": "swiglu",
    "activation": "silu",
    "global_pool": "avg",
    "proj_bias": False,
    "mlp_bias": False,
    "class_token": False,
    "qkv_bias": False,
}
BEIT3 = {"scale_attn_norm": True, "scale_mlp_norm": True, "global_pool": "avg", "fc_norm": True, "norm_eps": 1e-5}
RADIO = {"no_embed_class": True, "final_norm": False}
GIANT = {"mlp_layer": "swiglu_packed", "mlp_ratio": 2.66667, "activation": "silu"}
REGISTERS = {"no_embed_class": True}

# fmt: off
_CONFIGS: dict[str, ViTConfig] = {
    # width, depth, heads, patch, image
    "aimv2_1b_patch14_224": vit(2048, 24, 16, 14, 224, mlp_ratio=2.75, **AIMV2),
    "aimv2_1b_patch14_336": vit(2048, 24, 16, 14, 336, mlp_ratio=2.75, **AIMV2),
    "aimv2_1b_patch14_448": vit(2048, 24, 16, 14, 448, mlp_ratio=2.75, **AIMV2),
    "aimv2_3b_patch14_224": vit(3072, 24, 24, 14, 224, mlp_ratio=2.6667, **AIMV2),
    "aimv2_3b_patch14_336": vit(3072, 24, 24, 14, 336, mlp_ratio=2.6667, **AIMV2),
    "aimv2_3b_patch14_448": vit(3072, 24, 24, 14, 448, mlp_ratio=2.6667, **AIMV2),
    "aimv2_huge_patch14_224": vit(1536, 24, 12, 14, 224, mlp_ratio=2.6667, **AIMV2),
    "aimv2_huge_patch14_336": vit(1536, 24, 12, 14, 336, mlp_ratio=2.6667, **AIMV2),
    "aimv2_huge_patch14_448": vit(1536, 24, 12, 14, 448, mlp_ratio=2.6667, **AIMV2),
    "aimv2_large_patch14_224": vit(1024, 24, 8, 14, 224, mlp_ratio=2.75, **AIMV2),
    "aimv2_large_patch14_336": vit(1024, 24, 8, 14, 336, mlp_ratio=2.75, **AIMV2),
    "aimv2_large_patch14_448": vit(1024, 24, 8, 14, 448, mlp_ratio=2.75, **AIMV2),
    "beit3_base_patch16_224": vit(768, 12, 12, 16, 224, **BEIT3),
    "beit3_giant_patch14_224": vit(1408, 40, 16, 14, 224, mlp_ratio=4.3637, **BEIT3),
    "beit3_giant_patch14_336": vit(1408, 40, 16, 14, 336, mlp_ratio=4.3637, **BEIT3),
    "beit3_large_patch16_224": vit(1024, 24, 16, 16, 224, **BEIT3),
    "vit_base_patch14_dinov2": vit(768, 12, 12, 14, 518, init_values=1e-5),
    "vit_base_patch14_reg1_tipsv2": vit(768, 12, 12, 14, 448, reg_tokens=1, init_values=1.0, **REGISTERS),
    "vit_base_patch14_reg4_dinov2": vit(768, 12, 12, 14, 518, reg_tokens=4, init_values=1e-5, **REGISTERS),
    "vit_base_patch16_radio_v3": vit(768, 12, 12, 16, 512, reg_tokens=7, init_values=1e-5, **RADIO),
    "vit_giant_patch14_dinov2": vit(1536, 40, 24, 14, 518, init_values=1e-5, **GIANT),
    "vit_giant_patch14_reg1_tipsv2": vit(1536, 40, 24, 14, 448, reg_tokens=1, init_values=1.0, **GIANT, **REGISTERS),
    "vit_giant_patch14_reg4_dinov2": vit(1536, 40, 24, 14, 518, reg_tokens=4, init_values=1e-5, **GIANT, **REGISTERS),
    "vit_giant_patch16_radio_v3": vit(1536, 40, 24, 16, 512, reg_tokens=7, **RADIO),
    "vit_huge_patch16_radio_v3": vit(1280, 32, 16, 16, 512, reg_tokens=7, **RADIO),
    "vit_huge_patch16_radio_v4": vit(1280, 32, 16, 16, 512, reg_tokens=9, **RADIO),
    "vit_intern300m_patch14_448": vit(1024, 24, 16, 14, 448, final_norm=False, init_values=0.1),
    "vit_large_patch14_dinov2": vit(1024, 24, 16, 14, 518, init_values=1e-5),
    "vit_large_patch14_reg1_tipsv2": vit(1024, 24, 16, 14, 448, reg_tokens=1, init_values=1.0, **REGISTERS),
    "vit_large_patch14_reg4_dinov2": vit(1024, 24, 16, 14, 518, reg_tokens=4, init_values=1e-5, **REGISTERS),
    "vit_large_patch16_radio_v3": vit(1024, 24, 16, 16, 512, reg_tokens=7, init_values=1e-5, **RADIO),
    "vit_small_patch14_dinov2": vit(384, 12, 6, 14, 518, init_values=1e-5),
    "vit_small_patch14_reg4_dinov2": vit(384, 12, 6, 14, 518, reg_tokens=4, init_values=1e-5, **REGISTERS),
    "vit_so400m_patch14_reg1_tipsv2": vit(
        1152, 27, 16, 14, 448, mlp_ratio=4304 / 1152, reg_tokens=1, init_values=1.0, **REGISTERS,
    ),
    "vit_so400m_patch16_radio_v4": vit(1152, 27, 16, 16, 512, mlp_ratio=4304 / 1152, reg_tokens=9, **RADIO),
}

# The first weights of an architecture are those of its bare name.
_WEIGHTS: dict[str, Weights] = {
    # classes (0: no head), normalisation, crop
    "aimv2_1b_patch14_224.apple_pt": weights(0, CLIP, 1.0, licence="apple-ascl"),
    "aimv2_1b_patch14_336.apple_pt": weights(0, CLIP, 1.0, licence="apple-ascl"),
    "aimv2_1b_patch14_448.apple_pt": weights(0, CLIP, 1.0, licence="apple-ascl"),
    "aimv2_3b_patch14_224.apple_pt": weights(0, CLIP, 1.0, licence="apple-ascl"),
    "aimv2_3b_patch14_336.apple_pt": weights(0, CLIP, 1.0, licence="apple-ascl"),
    "aimv2_3b_patch14_448.apple_pt": weights(0, CLIP, 1.0, licence="apple-ascl"),
    "aimv2_huge_patch14_224.apple_pt": weights(0, CLIP, 1.0, licence="apple-ascl"),
    "aimv2_huge_patch14_336.apple_pt": weights(0, CLIP, 1.0, licence="apple-ascl"),
    "aimv2_huge_patch14_448.apple_pt": weights(0, CLIP, 1.0, licence="apple-ascl"),
    "aimv2_large_patch14_224.apple_pt": weights(0, CLIP, 1.0, licence="apple-ascl"),
    "aimv2_large_patch14_224.apple_pt_dist": weights(0, CLIP, 1.0, licence="apple-ascl"),
    "aimv2_large_patch14_336.apple_pt": weights(0, CLIP, 1.0, licence="apple-ascl"),
    "aimv2_large_patch14_336.apple_pt_dist": weights(0, CLIP, 1.0, licence="apple-ascl"),
    "aimv2_large_patch14_448.apple_pt": weights(0, CLIP, 1.0, licence="apple-ascl"),
    "beit3_base_patch16_224.in22k_ft_in1k": weights(1000, IMAGENET, 1.0),
    "beit3_base_patch16_224.indomain_in22k_ft_in1k": weights(1000, IMAGENET, 1.0),
    "beit3_base_patch16_224.pt": weights(0, IMAGENET, 1.0),
    "beit3_base_patch16_224.indomain_pt": weights(0, IMAGENET, 1.0),
    "beit3_giant_patch14_224.untrained": weights(1000, IMAGENET, 1.0, source=None),
    "beit3_giant_patch14_336.untrained": weights(1000, IMAGENET, 1.0, source=None),
    "beit3_large_patch16_224.in22k_ft_in1k": weights(1000, IMAGENET, 1.0),
    "beit3_large_patch16_224.indomain_in22k_ft_in1k": weights(1000, IMAGENET, 1.0),
    "beit3_large_patch16_224.pt": weights(0, IMAGENET, 1.0),
    "beit3_large_patch16_224.indomain_pt": weights(0, IMAGENET, 1.0),
    "vit_base_patch14_dinov2.lvd142m": weights(0, IMAGENET, 1.0),
    "vit_base_patch14_reg1_tipsv2.webli": weights(0, UNIT, 1.0),
    "vit_base_patch14_reg4_dinov2.lvd142m": weights(0, IMAGENET, 1.0),
    "vit_base_patch16_radio_v3.c_radio": weights(0, CLIP, 1.0, licence="nvidia-open-model-license"),
    "vit_giant_patch14_dinov2.lvd142m": weights(0, IMAGENET, 1.0),
    "vit_giant_patch14_reg1_tipsv2.webli": weights(0, UNIT, 1.0),
    "vit_giant_patch14_reg4_dinov2.lvd142m": weights(0, IMAGENET, 1.0),
    "vit_giant_patch16_radio_v3.c_radio": weights(0, CLIP, 1.0, licence="nvidia-open-model-license"),
    "vit_huge_patch16_radio_v3.c_radio": weights(0, CLIP, 1.0, licence="nvidia-open-model-license"),
    "vit_huge_patch16_radio_v4.c_radio": weights(0, CLIP, 1.0, licence="nvidia-open-model-license"),
    "vit_intern300m_patch14_448.ogvl_dist": weights(0, IMAGENET, 1.0, licence="mit"),
    "vit_intern300m_patch14_448.ogvl_2pt5": weights(0, IMAGENET, 1.0),
    "vit_large_patch14_dinov2.lvd142m": weights(0, IMAGENET, 1.0),
    "vit_large_patch14_reg1_tipsv2.webli": weights(0, UNIT, 1.0),
    "vit_large_patch14_reg4_dinov2.lvd142m": weights(0, IMAGENET, 1.0),
    "vit_large_patch16_radio_v3.c_radio": weights(0, CLIP, 1.0, licence="nvidia-open-model-license"),
    "vit_small_patch14_dinov2.lvd142m": weights(0, IMAGENET, 1.0),
    "vit_small_patch14_reg4_dinov2.lvd142m": weights(0, IMAGENET, 1.0),
    "vit_so400m_patch14_reg1_tipsv2.webli": weights(0, UNIT, 1.0),
    "vit_so400m_patch16_radio_v4.c_radio": weights(0, CLIP, 1.0, licence="nvidia-open-model-license"),
}
# fmt: on

FOUNDATION_MODELS = collect(_CONFIGS, _WEIGHTS)
