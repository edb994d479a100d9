"""The tutorial's models, with its constructors' defaults."""

from vit_flax.config import T2TViTConfig, ViTConfig
from vit_flax.presets.preset import Preset

EXPLAINED = {
    "explained_vit": Preset(
        config=ViTConfig(
            image_size=(400, 100), patch_size=(50, 50), in_chans=1, num_classes=1, num_heads=1, qkv_bias=False,
            value_skip=True, norm_eps=1e-5, pos_embed="sinusoid",
        )
    ),
    "explained_t2t_vit": Preset(
        config=T2TViTConfig(
            image_size=(1700, 500), softsplit_kernels=(31, 3, 3), in_chans=1, num_classes=1, num_heads=1,
            qkv_bias=False, value_skip=True, norm_eps=1e-5, pos_embed="sinusoid",
        )
    ),
}  # fmt: skip
