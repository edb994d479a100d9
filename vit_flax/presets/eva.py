"""Models of timm's eva.py: EVA, EVA-02, Perception Encoder, RoPE-ViT, DINOv3, LingBot."""

from vit_flax.config import RopeViTConfig, ViTConfig
from vit_flax.presets.preset import CLIP, IMAGENET, INCEPTION, Normalisation, Weights, collect, weights

GAP = {"global_pool": "avg", "fc_norm": True}
PLAIN = {"norm_eps": 1e-6, "init_values": None, "pos_embed": "learned"}
COUNTED = {"rope_type": "cat", "rope_rotate_half": False, "rope_theta": 10000.0}
EVA = {**PLAIN, "rope_type": "none"}
EVA02 = {**PLAIN, **COUNTED, "rope_ref_grid": (16, 16), "mlp_ratio": 8 / 3, "activation": "silu"}
SPLIT = {"mlp_layer": "swiglu", "scale_mlp_norm": True, "qkv_fused": False}
PACKED = {"mlp_layer": "swiglu_packed"}
GAP256 = {**COUNTED, "rope_ref_grid": (16, 16), "norm_eps": 1e-6, "init_values": 1e-5, "class_token": False}
ROPE = {
    "rope_type": "cat", "rope_rotate_half": False, "rope_grid_indexing": "xy", "key_bias": True, "norm_eps": 1e-6,
    "init_values": 1e-5,
}  # fmt: skip
MIXED = {**ROPE, "rope_type": "mixed", "rope_theta": 10.0}
APE = {"pos_embed": "learned", "no_embed_class": True}
PE = {
    **COUNTED, "rope_grid_indexing": "xy", "key_bias": True, "init_values": None, "pre_norm": True,
    "patch_bias": False, "pos_embed": "learned",
}  # fmt: skip
PE_SCALED = {**PE, "init_values": 0.1}
CORE = {"global_pool": "map", "pool_include_prefix": True, "attn_pool_num_heads": 8, "attn_pool_mlp_ratio": 4.0}
NO_NORM = {"global_pool": "avg", "final_norm": False}
DINOV3 = {"init_values": 1e-5, "reg_tokens": 4}
GATED = {"mlp_layer": "swiglu", "activation": "silu"}
SATELLITE: Normalisation = (0.43, 0.411, 0.296), (0.213, 0.156, 0.143)


def eva(width: int, depth: int, heads: int, patch: int, image: int, **fields: object) -> ViTConfig:
    """Returns the config of a row."""
    size = {"patch_size": (patch, patch), "image_size": (image, image)}
    return RopeViTConfig(embed_dim=width, depth=depth, num_heads=heads, **size, **fields)


# fmt: off
_CONFIGS: dict[str, ViTConfig] = {
    # width, depth, heads, patch, image
    "eva02_base_patch14_224": eva(768, 12, 12, 14, 224, **EVA02, **SPLIT, **GAP),
    "eva02_base_patch14_448": eva(768, 12, 12, 14, 448, **EVA02, **SPLIT, **GAP),
    "eva02_base_patch16_clip_224": eva(768, 12, 12, 16, 224, scale_attn_norm=True, **EVA02, **SPLIT),
    "eva02_enormous_patch14_clip_224": eva(1792, 64, 16, 14, 224, mlp_ratio=60 / 7, block="res_post", **EVA),
    "eva02_large_patch14_224": eva(1024, 24, 16, 14, 224, **EVA02, **SPLIT, **GAP),
    "eva02_large_patch14_448": eva(1024, 24, 16, 14, 448, **EVA02, **SPLIT, **GAP),
    "eva02_large_patch14_clip_224": eva(1024, 24, 16, 14, 224, scale_attn_norm=True, **EVA02, **SPLIT),
    "eva02_large_patch14_clip_336": eva(1024, 24, 16, 14, 336, scale_attn_norm=True, **EVA02, **SPLIT),
    "eva02_small_patch14_224": eva(384, 12, 6, 14, 224, **EVA02, **PACKED, **GAP),
    "eva02_small_patch14_336": eva(384, 12, 6, 14, 336, **EVA02, **PACKED, **GAP),
    "eva02_tiny_patch14_224": eva(192, 12, 3, 14, 224, **EVA02, **PACKED, **GAP),
    "eva02_tiny_patch14_336": eva(192, 12, 3, 14, 336, **EVA02, **PACKED, **GAP),
    "eva_giant_patch14_224": eva(1408, 40, 16, 14, 224, mlp_ratio=48 / 11, **EVA, **GAP),
    "eva_giant_patch14_336": eva(1408, 40, 16, 14, 336, mlp_ratio=48 / 11, **EVA, **GAP),
    "eva_giant_patch14_560": eva(1408, 40, 16, 14, 560, mlp_ratio=48 / 11, **EVA, **GAP),
    "eva_giant_patch14_clip_224": eva(1408, 40, 16, 14, 224, mlp_ratio=48 / 11, **EVA),
    "vit_7b_patch16_dinov3": eva(
        4096, 40, 32, 16, 256, mlp_ratio=2, global_pool="avg", qkv_bias=False, **DINOV3, **GATED,
    ),
    "vit_base_patch16_dinov3": eva(768, 12, 12, 16, 256, global_pool="avg", qkv_bias=False, **DINOV3),
    "vit_base_patch16_dinov3_qkvb": eva(768, 12, 12, 16, 256, global_pool="avg", **DINOV3),
    "vit_base_patch16_lingbot": eva(768, 12, 12, 16, 512, **DINOV3),
    "vit_base_patch16_rope_224": eva(768, 12, 12, 16, 224, **ROPE),
    "vit_base_patch16_rope_ape_224": eva(768, 12, 12, 16, 224, **ROPE, **APE),
    "vit_base_patch16_rope_mixed_224": eva(768, 12, 12, 16, 224, **MIXED),
    "vit_base_patch16_rope_mixed_ape_224": eva(768, 12, 12, 16, 224, **MIXED, **APE),
    "vit_base_patch16_rope_reg1_gap_256": eva(768, 12, 12, 16, 256, reg_tokens=1, **GAP256, **GAP),
    "vit_betwixt_patch16_rope_reg4_gap_256": eva(640, 12, 10, 16, 256, reg_tokens=4, **GAP256, **GAP),
    "vit_giant_patch16_lingbot": eva(1536, 40, 24, 16, 512, mlp_ratio=8 / 3, qkv_bias=False, **DINOV3, **GATED),
    "vit_huge_plus_patch16_dinov3": eva(1280, 32, 20, 16, 256, global_pool="avg", qkv_bias=False, **DINOV3, **GATED),
    "vit_huge_plus_patch16_dinov3_qkvb": eva(1280, 32, 20, 16, 256, global_pool="avg", **DINOV3, **GATED),
    "vit_large_patch16_dinov3": eva(1024, 24, 16, 16, 256, global_pool="avg", qkv_bias=False, **DINOV3),
    "vit_large_patch16_dinov3_qkvb": eva(1024, 24, 16, 16, 256, global_pool="avg", **DINOV3),
    "vit_large_patch16_lingbot": eva(1024, 24, 16, 16, 512, **DINOV3),
    "vit_large_patch16_rope_224": eva(1024, 24, 16, 16, 224, **ROPE),
    "vit_large_patch16_rope_ape_224": eva(1024, 24, 16, 16, 224, **ROPE, **APE),
    "vit_large_patch16_rope_mixed_224": eva(1024, 24, 16, 16, 224, **MIXED),
    "vit_large_patch16_rope_mixed_ape_224": eva(1024, 24, 16, 16, 224, **MIXED, **APE),
    "vit_medium_patch16_rope_reg1_gap_256": eva(512, 12, 8, 16, 256, reg_tokens=1, **GAP256, **GAP),
    "vit_mediumd_patch16_rope_reg1_gap_256": eva(512, 20, 8, 16, 256, reg_tokens=1, qkv_bias=False, **GAP256, **GAP),
    "vit_pe_core_base_patch16_224": eva(
        768, 12, 12, 16, 224, rope_grid_offset=1.0, rope_ref_grid=(14, 14), **PE, **CORE,
    ),
    "vit_pe_core_gigantic_patch14_448": eva(
        1536, 50, 16, 14, 448, mlp_ratio=35 / 6, rope_ref_grid=(32, 32), class_token=False, **PE, **CORE,
    ),
    "vit_pe_core_large_patch14_336": eva(
        1024, 24, 16, 14, 336, rope_grid_offset=1.0, rope_ref_grid=(24, 24), **PE, **CORE,
    ),
    "vit_pe_core_small_patch16_384": eva(
        384, 12, 6, 16, 384, rope_grid_offset=1.0, rope_ref_grid=(24, 24), **PE, **CORE,
    ),
    "vit_pe_core_tiny_patch16_384": eva(
        192, 12, 3, 16, 384, rope_grid_offset=1.0, rope_ref_grid=(24, 24), **PE, **CORE,
    ),
    "vit_pe_lang_gigantic_patch14_448": eva(
        1536, 47, 16, 14, 448, mlp_ratio=35 / 6, rope_ref_grid=(32, 32), class_token=False, **PE_SCALED, **NO_NORM,
    ),
    "vit_pe_lang_large_patch14_448": eva(
        1024, 23, 16, 14, 448, rope_grid_offset=1.0, rope_ref_grid=(32, 32), **PE_SCALED, **NO_NORM,
    ),
    "vit_pe_spatial_base_patch16_512": eva(
        768, 12, 12, 16, 512, rope_grid_offset=1.0, rope_ref_grid=(32, 32), **PE, **NO_NORM,
    ),
    "vit_pe_spatial_gigantic_patch14_448": eva(
        1536, 50, 16, 14, 448, mlp_ratio=35 / 6, rope_ref_grid=(32, 32), class_token=False, **PE_SCALED, **NO_NORM,
    ),
    "vit_pe_spatial_large_patch14_448": eva(
        1024, 24, 16, 14, 448, rope_grid_offset=1.0, rope_ref_grid=(32, 32), **PE, **NO_NORM,
    ),
    "vit_pe_spatial_small_patch16_512": eva(
        384, 12, 6, 16, 512, rope_grid_offset=1.0, rope_ref_grid=(32, 32), **PE, **NO_NORM,
    ),
    "vit_pe_spatial_tiny_patch16_512": eva(
        192, 12, 3, 16, 512, rope_grid_offset=1.0, rope_ref_grid=(32, 32), **PE, **NO_NORM,
    ),
    "vit_small_patch16_dinov3": eva(384, 12, 6, 16, 256, global_pool="avg", qkv_bias=False, **DINOV3),
    "vit_small_patch16_dinov3_qkvb": eva(384, 12, 6, 16, 256, global_pool="avg", **DINOV3),
    "vit_small_patch16_lingbot": eva(384, 12, 6, 16, 512, **DINOV3),
    "vit_small_patch16_rope_224": eva(384, 12, 6, 16, 224, **ROPE),
    "vit_small_patch16_rope_ape_224": eva(384, 12, 6, 16, 224, **ROPE, **APE),
    "vit_small_patch16_rope_mixed_224": eva(384, 12, 6, 16, 224, **MIXED),
    "vit_small_patch16_rope_mixed_ape_224": eva(384, 12, 6, 16, 224, **MIXED, **APE),
    "vit_small_plus_patch16_dinov3": eva(384, 12, 6, 16, 256, global_pool="avg", qkv_bias=False, **DINOV3, **GATED),
    "vit_small_plus_patch16_dinov3_qkvb": eva(384, 12, 6, 16, 256, global_pool="avg", **DINOV3, **GATED),
    "vit_tiny_patch16_dinov3_qkvb": eva(192, 12, 3, 16, 256, global_pool="avg", **DINOV3),
}

# The first weights of an architecture are those of its bare name.
_WEIGHTS: dict[str, Weights] = {
    # classes (0: no head), normalisation, crop
    "eva02_base_patch14_224.mim_in22k": weights(0, CLIP, licence="mit"),
    "eva02_base_patch14_448.mim_in22k_ft_in22k_in1k": weights(1000, CLIP, 1.0, crop_mode="squash", licence="mit"),
    "eva02_base_patch14_448.mim_in22k_ft_in1k": weights(1000, CLIP, 1.0, licence="mit"),
    "eva02_base_patch14_448.mim_in22k_ft_in22k": weights(21841, CLIP, 1.0, crop_mode="squash", licence="mit"),
    "eva02_base_patch16_clip_224.merged2b": weights(512, CLIP, licence="mit"),
    "eva02_enormous_patch14_clip_224.laion2b": weights(1024, CLIP, licence="mit"),
    "eva02_enormous_patch14_clip_224.laion2b_plus": weights(1024, CLIP, licence="mit"),
    "eva02_enormous_patch14_clip_224.pretrain": weights(0, CLIP, licence="mit", source=None),
    "eva02_large_patch14_224.mim_in22k": weights(0, CLIP, licence="mit"),
    "eva02_large_patch14_224.mim_m38m": weights(0, CLIP, licence="mit"),
    "eva02_large_patch14_448.mim_in22k_ft_in22k_in1k": weights(1000, CLIP, 1.0, crop_mode="squash", licence="mit"),
    "eva02_large_patch14_448.mim_in22k_ft_in1k": weights(1000, CLIP, 1.0, licence="mit"),
    "eva02_large_patch14_448.mim_in22k_ft_in22k": weights(21841, CLIP, 1.0, crop_mode="squash", licence="mit"),
    "eva02_large_patch14_448.mim_m38m_ft_in1k": weights(1000, CLIP, 1.0, licence="mit"),
    "eva02_large_patch14_448.mim_m38m_ft_in22k": weights(21841, CLIP, 1.0, crop_mode="squash", licence="mit"),
    "eva02_large_patch14_448.mim_m38m_ft_in22k_in1k": weights(1000, CLIP, 1.0, crop_mode="squash", licence="mit"),
    "eva02_large_patch14_clip_224.merged2b": weights(768, CLIP, licence="mit"),
    "eva02_large_patch14_clip_336.merged2b": weights(768, CLIP, 1.0, licence="mit"),
    "eva02_small_patch14_224.mim_in22k": weights(0, CLIP, licence="mit"),
    "eva02_small_patch14_336.mim_in22k_ft_in1k": weights(1000, CLIP, 1.0, licence="mit"),
    "eva02_tiny_patch14_224.mim_in22k": weights(0, CLIP, licence="mit"),
    "eva02_tiny_patch14_336.mim_in22k_ft_in1k": weights(1000, CLIP, 1.0, licence="mit"),
    "eva_giant_patch14_224.clip_ft_in1k": weights(1000, CLIP, licence="mit"),
    "eva_giant_patch14_336.clip_ft_in1k": weights(1000, CLIP, 1.0, crop_mode="squash", licence="mit"),
    "eva_giant_patch14_336.m30m_ft_in22k_in1k": weights(1000, IMAGENET, 1.0, crop_mode="squash", licence="mit"),
    "eva_giant_patch14_560.m30m_ft_in22k_in1k": weights(1000, IMAGENET, 1.0, crop_mode="squash", licence="mit"),
    "eva_giant_patch14_clip_224.laion400m": weights(1024, CLIP, licence="mit"),
    "eva_giant_patch14_clip_224.merged2b": weights(1024, CLIP, licence="mit"),
    "vit_7b_patch16_dinov3.lvd1689m": weights(0, IMAGENET, 1.0, licence="dinov3-license"),
    "vit_7b_patch16_dinov3.sat493m": weights(0, SATELLITE, 1.0, licence="dinov3-license"),
    "vit_base_patch16_dinov3.lvd1689m": weights(0, IMAGENET, 1.0, licence="dinov3-license"),
    "vit_base_patch16_dinov3_qkvb.lvd1689m": weights(0, IMAGENET, 1.0, licence="dinov3-license"),
    "vit_base_patch16_dinov3_qkvb.eupe_lvd1689m": weights(
        0, IMAGENET, 1.0, licence="fair-noncommercial-research-license",
    ),
    "vit_base_patch16_lingbot.robbyant": weights(
        0, IMAGENET, 1.0, interpolation="bilinear", crop_mode="squash",
        source="belfner/vit_base_patch16_lingbot.robbyant",
    ),
    "vit_base_patch16_rope_224.naver_in1k": weights(1000, IMAGENET),
    "vit_base_patch16_rope_ape_224.naver_in1k": weights(1000, IMAGENET),
    "vit_base_patch16_rope_mixed_224.naver_in1k": weights(1000, IMAGENET),
    "vit_base_patch16_rope_mixed_ape_224.naver_in1k": weights(1000, IMAGENET),
    "vit_base_patch16_rope_reg1_gap_256.sbb_in1k": weights(1000, INCEPTION, 0.95, licence="mit"),
    "vit_betwixt_patch16_rope_reg4_gap_256.sbb_in1k": weights(1000, CLIP, 0.95, licence="mit"),
    "vit_giant_patch16_lingbot.robbyant": weights(
        0, IMAGENET, 1.0, interpolation="bilinear", crop_mode="squash",
        source="belfner/vit_giant_patch16_lingbot.robbyant",
    ),
    "vit_huge_plus_patch16_dinov3.lvd1689m": weights(0, IMAGENET, 1.0, licence="dinov3-license"),
    "vit_huge_plus_patch16_dinov3_qkvb.lvd1689m": weights(0, IMAGENET, 1.0, licence="dinov3-license"),
    "vit_large_patch16_dinov3.lvd1689m": weights(0, IMAGENET, 1.0, licence="dinov3-license"),
    "vit_large_patch16_dinov3.sat493m": weights(0, SATELLITE, 1.0, licence="dinov3-license"),
    "vit_large_patch16_dinov3_qkvb.lvd1689m": weights(0, IMAGENET, 1.0, licence="dinov3-license"),
    "vit_large_patch16_dinov3_qkvb.sat493m": weights(0, SATELLITE, 1.0, licence="dinov3-license"),
    "vit_large_patch16_lingbot.robbyant": weights(
        0, IMAGENET, 1.0, interpolation="bilinear", crop_mode="squash",
        source="belfner/vit_large_patch16_lingbot.robbyant",
    ),
    "vit_large_patch16_rope_224.naver_in1k": weights(1000, IMAGENET),
    "vit_large_patch16_rope_ape_224.naver_in1k": weights(1000, IMAGENET),
    "vit_large_patch16_rope_mixed_224.naver_in1k": weights(1000, IMAGENET),
    "vit_large_patch16_rope_mixed_ape_224.naver_in1k": weights(1000, IMAGENET),
    "vit_medium_patch16_rope_reg1_gap_256.sbb_in1k": weights(1000, INCEPTION, 0.95, licence="mit"),
    "vit_mediumd_patch16_rope_reg1_gap_256.sbb_in1k": weights(1000, INCEPTION, 0.95, licence="mit"),
    "vit_pe_core_base_patch16_224.fb": weights(1024, INCEPTION, 1.0),
    "vit_pe_core_gigantic_patch14_448.fb": weights(1280, INCEPTION, 1.0),
    "vit_pe_core_large_patch14_336.fb": weights(1024, INCEPTION, 1.0),
    "vit_pe_core_small_patch16_384.fb": weights(512, INCEPTION, 1.0),
    "vit_pe_core_tiny_patch16_384.fb": weights(512, INCEPTION, 1.0),
    "vit_pe_lang_gigantic_patch14_448.fb": weights(0, INCEPTION, 1.0),
    "vit_pe_lang_gigantic_patch14_448.fb_tiling": weights(0, INCEPTION, 1.0),
    "vit_pe_lang_large_patch14_448.fb": weights(0, INCEPTION, 1.0),
    "vit_pe_lang_large_patch14_448.fb_tiling": weights(0, INCEPTION, 1.0),
    "vit_pe_spatial_base_patch16_512.fb": weights(0, INCEPTION, 1.0),
    "vit_pe_spatial_gigantic_patch14_448.fb": weights(0, INCEPTION, 1.0),
    "vit_pe_spatial_large_patch14_448.fb": weights(0, INCEPTION, 1.0),
    "vit_pe_spatial_small_patch16_512.fb": weights(0, INCEPTION, 1.0),
    "vit_pe_spatial_tiny_patch16_512.fb": weights(0, INCEPTION, 1.0),
    "vit_small_patch16_dinov3.lvd1689m": weights(0, IMAGENET, 1.0, licence="dinov3-license"),
    "vit_small_patch16_dinov3_qkvb.lvd1689m": weights(0, IMAGENET, 1.0, licence="dinov3-license"),
    "vit_small_patch16_dinov3_qkvb.eupe_lvd1689m": weights(
        0, IMAGENET, 1.0, licence="fair-noncommercial-research-license",
    ),
    "vit_small_patch16_lingbot.robbyant": weights(
        0, IMAGENET, 1.0, interpolation="bilinear", crop_mode="squash",
        source="belfner/vit_small_patch16_lingbot.robbyant",
    ),
    "vit_small_patch16_rope_224.naver_in1k": weights(1000, IMAGENET),
    "vit_small_patch16_rope_ape_224.naver_in1k": weights(1000, IMAGENET),
    "vit_small_patch16_rope_mixed_224.naver_in1k": weights(1000, IMAGENET),
    "vit_small_patch16_rope_mixed_ape_224.naver_in1k": weights(1000, IMAGENET),
    "vit_small_plus_patch16_dinov3.lvd1689m": weights(0, IMAGENET, 1.0, licence="dinov3-license"),
    "vit_small_plus_patch16_dinov3_qkvb.lvd1689m": weights(0, IMAGENET, 1.0, licence="dinov3-license"),
    "vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m": weights(
        0, IMAGENET, 1.0, licence="fair-noncommercial-research-license",
    ),
}
# fmt: on

EVA_MODELS = collect(_CONFIGS, _WEIGHTS)
