"""DeiT, with and without distillation token, and DeiT-III."""

from vit_flax.config import ViTConfig
from vit_flax.presets.preset import IMAGENET, Weights, collect, vit, weights

DISTILLED = {"dist_token": True, "head_dist": True}
DEIT3 = {"no_embed_class": True, "init_values": 1e-6}

# fmt: off
_CONFIGS: dict[str, ViTConfig] = {
    # width, depth, heads, patch, image
    "deit3_base_patch16_224": vit(768, 12, 12, 16, 224, **DEIT3),
    "deit3_base_patch16_384": vit(768, 12, 12, 16, 384, **DEIT3),
    "deit3_huge_patch14_224": vit(1280, 32, 16, 14, 224, **DEIT3),
    "deit3_large_patch16_224": vit(1024, 24, 16, 16, 224, **DEIT3),
    "deit3_large_patch16_384": vit(1024, 24, 16, 16, 384, **DEIT3),
    "deit3_medium_patch16_224": vit(512, 12, 8, 16, 224, **DEIT3),
    "deit3_small_patch16_224": vit(384, 12, 6, 16, 224, **DEIT3),
    "deit3_small_patch16_384": vit(384, 12, 6, 16, 384, **DEIT3),
    "deit_base_distilled_patch16_224": vit(768, 12, 12, 16, 224, **DISTILLED),
    "deit_base_distilled_patch16_384": vit(768, 12, 12, 16, 384, **DISTILLED),
    "deit_base_patch16_224": vit(768, 12, 12, 16, 224),
    "deit_base_patch16_384": vit(768, 12, 12, 16, 384),
    "deit_small_distilled_patch16_224": vit(384, 12, 6, 16, 224, **DISTILLED),
    "deit_small_patch16_224": vit(384, 12, 6, 16, 224),
    "deit_tiny_distilled_patch16_224": vit(192, 12, 3, 16, 224, **DISTILLED),
    "deit_tiny_patch16_224": vit(192, 12, 3, 16, 224),
}

# The first weights of an architecture are those of its bare name.
_WEIGHTS: dict[str, Weights] = {
    # classes (0: no head), normalisation, crop
    "deit3_base_patch16_224.fb_in1k": weights(1000, IMAGENET),
    "deit3_base_patch16_224.fb_in22k_ft_in1k": weights(1000, IMAGENET, 1.0),
    "deit3_base_patch16_384.fb_in1k": weights(1000, IMAGENET, 1.0),
    "deit3_base_patch16_384.fb_in22k_ft_in1k": weights(1000, IMAGENET, 1.0),
    "deit3_huge_patch14_224.fb_in1k": weights(1000, IMAGENET),
    "deit3_huge_patch14_224.fb_in22k_ft_in1k": weights(1000, IMAGENET, 1.0),
    "deit3_large_patch16_224.fb_in1k": weights(1000, IMAGENET),
    "deit3_large_patch16_224.fb_in22k_ft_in1k": weights(1000, IMAGENET, 1.0),
    "deit3_large_patch16_384.fb_in1k": weights(1000, IMAGENET, 1.0),
    "deit3_large_patch16_384.fb_in22k_ft_in1k": weights(1000, IMAGENET, 1.0),
    "deit3_medium_patch16_224.fb_in1k": weights(1000, IMAGENET),
    "deit3_medium_patch16_224.fb_in22k_ft_in1k": weights(1000, IMAGENET, 1.0),
    "deit3_small_patch16_224.fb_in1k": weights(1000, IMAGENET),
    "deit3_small_patch16_224.fb_in22k_ft_in1k": weights(1000, IMAGENET, 1.0),
    "deit3_small_patch16_384.fb_in1k": weights(1000, IMAGENET, 1.0),
    "deit3_small_patch16_384.fb_in22k_ft_in1k": weights(1000, IMAGENET, 1.0),
    "deit_base_distilled_patch16_224.fb_in1k": weights(1000, IMAGENET),
    "deit_base_distilled_patch16_384.fb_in1k": weights(1000, IMAGENET, 1.0),
    "deit_base_patch16_224.fb_in1k": weights(1000, IMAGENET),
    "deit_base_patch16_384.fb_in1k": weights(1000, IMAGENET, 1.0),
    "deit_small_distilled_patch16_224.fb_in1k": weights(1000, IMAGENET),
    "deit_small_patch16_224.fb_in1k": weights(1000, IMAGENET),
    "deit_tiny_distilled_patch16_224.fb_in1k": weights(1000, IMAGENET),
    "deit_tiny_patch16_224.fb_in1k": weights(1000, IMAGENET),
}
# fmt: on

DEIT_MODELS = collect(_CONFIGS, _WEIGHTS)
