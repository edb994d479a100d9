"""torchvision's models: `torchvision_` and its constructors' names, a size at the end where it is not 224."""

from vit_flax.config import ViTConfig
from vit_flax.presets.preset import IMAGENET, Weights, collect, vit, weights

_URL = "https://download.pytorch.org/models"
_V1 = {"interpolation": "bilinear", "licence": "bsd-3-clause"}
_SWAG = {"licence": "cc-by-nc-4.0"}

# fmt: off
_CONFIGS: dict[str, ViTConfig] = {
    # width, depth, heads, patch, image
    "torchvision_vit_b_16": vit(768, 12, 12, 16, 224),
    "torchvision_vit_b_16_384": vit(768, 12, 12, 16, 384),
    "torchvision_vit_b_32": vit(768, 12, 12, 32, 224),
    "torchvision_vit_h_14": vit(1280, 32, 16, 14, 224),
    "torchvision_vit_h_14_518": vit(1280, 32, 16, 14, 518),
    "torchvision_vit_l_16": vit(1024, 24, 16, 16, 224),
    "torchvision_vit_l_16_512": vit(1024, 24, 16, 16, 512),
    "torchvision_vit_l_32": vit(1024, 24, 16, 32, 224),
}

# The first weights of an architecture are those of its bare name.
_WEIGHTS: dict[str, Weights] = {
    # classes, normalisation, crop
    "torchvision_vit_b_16.imagenet1k_v1":
        weights(1000, IMAGENET, 224 / 256, **_V1, source=f"{_URL}/vit_b_16-c867db91.pth"),
    "torchvision_vit_b_16.imagenet1k_swag_linear_v1":
        weights(1000, IMAGENET, 1.0, **_SWAG, source=f"{_URL}/vit_b_16_lc_swag-4e70ced5.pth"),
    "torchvision_vit_b_16_384.imagenet1k_swag_e2e_v1":
        weights(1000, IMAGENET, 1.0, **_SWAG, source=f"{_URL}/vit_b_16_swag-9ac1b537.pth"),
    "torchvision_vit_b_32.imagenet1k_v1":
        weights(1000, IMAGENET, 224 / 256, **_V1, source=f"{_URL}/vit_b_32-d86f8d99.pth"),
    "torchvision_vit_h_14.imagenet1k_swag_linear_v1":
        weights(1000, IMAGENET, 1.0, **_SWAG, source=f"{_URL}/vit_h_14_lc_swag-c1eb923e.pth"),
    "torchvision_vit_h_14_518.imagenet1k_swag_e2e_v1":
        weights(1000, IMAGENET, 1.0, **_SWAG, source=f"{_URL}/vit_h_14_swag-80465313.pth"),
    "torchvision_vit_l_16.imagenet1k_v1":
        weights(1000, IMAGENET, 224 / 242, **_V1, source=f"{_URL}/vit_l_16-852ce7e3.pth"),
    "torchvision_vit_l_16.imagenet1k_swag_linear_v1":
        weights(1000, IMAGENET, 1.0, **_SWAG, source=f"{_URL}/vit_l_16_lc_swag-4d563306.pth"),
    "torchvision_vit_l_16_512.imagenet1k_swag_e2e_v1":
        weights(1000, IMAGENET, 1.0, **_SWAG, source=f"{_URL}/vit_l_16_swag-4f3808c9.pth"),
    "torchvision_vit_l_32.imagenet1k_v1":
        weights(1000, IMAGENET, 224 / 256, **_V1, source=f"{_URL}/vit_l_32-c7638314.pth"),
}
# fmt: on

TORCHVISION_MODELS = collect(_CONFIGS, _WEIGHTS)
