"""BEiT and BEiT v2 of timm's beit.py."""

from vit_flax.config import BeitConfig, ViTConfig
from vit_flax.presets.preset import IMAGENET, INCEPTION, Weights, collect, weights

GAP = {"global_pool": "avg", "fc_norm": True}


def beit(width: int, depth: int, heads: int, patch: int, image: int, **fields: object) -> ViTConfig:
    """Returns the config of a row."""
    size = {"patch_size": (patch, patch), "image_size": (image, image)}
    return BeitConfig(embed_dim=width, depth=depth, num_heads=heads, **size, **fields)


# fmt: off
_CONFIGS: dict[str, ViTConfig] = {
    # width, depth, heads, patch, image
    "beit_base_patch16_224": beit(768, 12, 12, 16, 224, **GAP),
    "beit_base_patch16_384": beit(768, 12, 12, 16, 384, **GAP),
    "beit_large_patch16_224": beit(1024, 24, 16, 16, 224, init_values=1e-5, **GAP),
    "beit_large_patch16_384": beit(1024, 24, 16, 16, 384, init_values=1e-5, **GAP),
    "beit_large_patch16_512": beit(1024, 24, 16, 16, 512, init_values=1e-5, **GAP),
    "beitv2_base_patch16_224": beit(768, 12, 12, 16, 224, init_values=1e-5, **GAP),
    "beitv2_large_patch16_224": beit(1024, 24, 16, 16, 224, init_values=1e-5, **GAP),
}

# The first weights of an architecture are those of its bare name.
_WEIGHTS: dict[str, Weights] = {
    # classes (0: no head), normalisation, crop
    "beit_base_patch16_224.in22k_ft_in22k_in1k": weights(1000, INCEPTION),
    "beit_base_patch16_224.in22k_ft_in22k": weights(21841, INCEPTION),
    "beit_base_patch16_384.in22k_ft_in22k_in1k": weights(1000, INCEPTION, 1.0),
    "beit_large_patch16_224.in22k_ft_in22k_in1k": weights(1000, INCEPTION),
    "beit_large_patch16_224.in22k_ft_in22k": weights(21841, INCEPTION),
    "beit_large_patch16_384.in22k_ft_in22k_in1k": weights(1000, INCEPTION, 1.0),
    "beit_large_patch16_512.in22k_ft_in22k_in1k": weights(1000, INCEPTION, 1.0),
    "beitv2_base_patch16_224.in1k_ft_in22k_in1k": weights(1000, IMAGENET),
    "beitv2_base_patch16_224.in1k_ft_in1k": weights(1000, IMAGENET),
    "beitv2_base_patch16_224.in1k_ft_in22k": weights(21841, IMAGENET),
    "beitv2_large_patch16_224.in1k_ft_in22k_in1k": weights(1000, IMAGENET, 0.95),
    "beitv2_large_patch16_224.in1k_ft_in1k": weights(1000, IMAGENET, 0.95),
    "beitv2_large_patch16_224.in1k_ft_in22k": weights(21841, IMAGENET),
}
# fmt: on

BEIT_MODELS = collect(_CONFIGS, _WEIGHTS)
