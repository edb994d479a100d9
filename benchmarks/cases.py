"""The cases of the benchmarks: models, batch sizes, and their FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from vit_flax.config import ViTConfig
from vit_flax.recipes.small import fashion_mnist


@dataclass(frozen=True)
class Case:
    """One model at one batch size, in one precision, for inference or a training step."""

    model: str
    batch: int
    precision: str  # float32 | bfloat16
    mode: str  # inference | features | train_step

    @property
    def name(self) -> str:
        """The case's name, in file names too."""
        return f"{self.mode}-{self.model}-b{self.batch}-{self.precision}"

    @property
    def config(self) -> ViTConfig:
        """The model's config."""
        return MODELS[self.model]

    @property
    def layers(self) -> tuple[int, ...]:
        """The blocks whose tokens `features` returns."""
        return tuple(self.config.depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4))

    @property
    def flops(self) -> float:
        """Model FLOPs of one call: two a multiply-add, matrix products only; training counts as three forwards."""
        return forward_flops(self.config) * self.batch * (3 if self.mode == "train_step" else 1)


MODELS: dict[str, ViTConfig] = {
    "T": ViTConfig(
        image_size=(28, 28), patch_size=(4, 4), in_chans=1, embed_dim=192, depth=6, num_heads=3, num_classes=10
    ),
    # the recipe's, with the learned positions of every library; only torch_timm builds it beside ours
    "fashion_mnist": cast(ViTConfig, fashion_mnist().model).replace(pos_embed="learned", fc_norm=True),
    "S": ViTConfig(embed_dim=384, num_heads=6),
    "B": ViTConfig(),
    "L": ViTConfig(embed_dim=1024, depth=24, num_heads=16),
    "S384": ViTConfig(embed_dim=384, num_heads=6, image_size=(384, 384)),
    "B384": ViTConfig(image_size=(384, 384)),
    "L518": ViTConfig(embed_dim=1024, depth=24, num_heads=16, image_size=(518, 518), patch_size=(14, 14)),
    "L384": ViTConfig(embed_dim=1024, depth=24, num_heads=16, image_size=(384, 384)),
}


def forward_flops(cfg: ViTConfig) -> float:
    """Returns the FLOPs of one image's forward pass, matrix products only."""
    tokens = cfg.num_patches + cfg.num_prefix_tokens
    patch = cfg.num_patches * cfg.patch_size[0] * cfg.patch_size[1] * cfg.in_chans * cfg.embed_dim
    linear = tokens * cfg.embed_dim * (4 * cfg.embed_dim + 2 * cfg.mlp_dim)
    attention = 2 * tokens * tokens * cfg.embed_dim
    return 2.0 * (patch + cfg.depth * (linear + attention) + cfg.embed_dim * cfg.num_classes)
