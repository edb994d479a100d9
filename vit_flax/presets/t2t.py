"""The original T2T-ViT's published models: `t2t_vit_` with performer tokens, `t2t_vit_t_` with transformer tokens.

Their attention scale is head_dim ** -0.5: the repository's training and evaluation commands keep the constructor's
`qk_scale=None`. Its code has embed_dim ** -0.5 under `pretrained=True` only, for which it publishes no weights.
"""

from vit_flax.config import T2TViTConfig
from vit_flax.presets.preset import IMAGENET, Preset

_RELEASES = "https://github.com/yitu-opensource/T2T-ViT/releases/download/main"


def _t2t(width: int, depth: int, heads: int, mlp_ratio: float, tokens: str, file: str, image: int = 224) -> Preset:
    transformer = tokens == "transformer"
    config = T2TViTConfig(
        image_size=(image, image), embed_dim=width, depth=depth, num_heads=heads, mlp_ratio=mlp_ratio, qkv_bias=False,
        norm_eps=1e-5, pos_embed="sinusoid", tokens_type=tokens, token_num_heads=1, token_input_scale=transformer,
        token_qkv_bias=False if transformer else None,
    )  # fmt: skip
    crop_pct = 0.9 if image == 224 else 1.0
    mean, std = IMAGENET
    return Preset(
        config=config, mean=mean, std=std, crop_pct=crop_pct, source=f"{_RELEASES}/{file}", licence="bsd-3-clause-clear"
    )


# fmt: off
T2T_MODELS = {
    # width, depth, heads, MLP ratio
    "t2t_vit_7": _t2t(256, 7, 4, 2.0, "performer", "71.7_T2T_ViT_7.pth.tar"),
    "t2t_vit_10": _t2t(256, 10, 4, 2.0, "performer", "75.2_T2T_ViT_10.pth.tar"),
    "t2t_vit_12": _t2t(256, 12, 4, 2.0, "performer", "76.5_T2T_ViT_12.pth.tar"),
    "t2t_vit_14": _t2t(384, 14, 6, 3.0, "performer", "81.5_T2T_ViT_14.pth.tar"),
    "t2t_vit_14_384": _t2t(384, 14, 6, 3.0, "performer", "83.3_T2T_ViT_14.pth.tar", 384),
    "t2t_vit_19": _t2t(448, 19, 7, 3.0, "performer", "81.9_T2T_ViT_19.pth.tar"),
    "t2t_vit_24": _t2t(512, 24, 8, 3.0, "performer", "82.3_T2T_ViT_24.pth.tar"),
    "t2t_vit_t_14": _t2t(384, 14, 6, 3.0, "transformer", "81.7_T2T_ViTt_14.pth.tar"),
    "t2t_vit_t_19": _t2t(448, 19, 7, 3.0, "transformer", "82.4_T2T_ViTt_19.pth.tar"),
    "t2t_vit_t_24": _t2t(512, 24, 8, 3.0, "transformer", "82.6_T2T_ViTt_24.pth.tar"),
}
# fmt: on
