"""Hidden width of the gated MLPs of DINOv2 and its relatives: two thirds of embed_dim * mlp_ratio, rounded up."""

from __future__ import annotations

from vit_flax.config import ViTConfig

_MAX_RATIO = 64


def hidden_width(width: int, ratio: float, gated: bool) -> int:
    """Returns the hidden width; of a gated MLP two thirds, rounded up to a multiple of 8."""
    hidden = int(width * ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if gated else hidden


def integer_ratio(config: ViTConfig) -> int | None:
    """Returns the integer that a config's hidden width comes from, or None where there is none."""
    # 4 first: among gated widths more than one may fit
    ratios = (4, *range(1, _MAX_RATIO))
    gated = config.mlp_layer == "swiglu_packed"
    return next((ratio for ratio in ratios if hidden_width(config.embed_dim, ratio, gated) == config.mlp_dim), None)
