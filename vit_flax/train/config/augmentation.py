"""Augmentation of training images: one by one on the host, and whole batches on the device."""

from __future__ import annotations

import dataclasses

from vit_flax.config.checks import require_choice, require_int, require_number, require_share
from vit_flax.config.field_types import check_types
from vit_flax.preprocessing.evaluation import INTERPOLATIONS
from vit_flax.train.config.nested import freeze_lists

AUTO_AUGMENTS = ("none", "randaugment", "autoaugment", "three_augment")

Range = tuple[float, float]  # bounds


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of single training images."""

    random_resized_crop: Range | None = None  # range of the crop's share of the area; None: no crop
    aspect_ratio: Range = (3 / 4, 4 / 3)  # range of the crop's width over height
    shift_pixels: int = 0  # random translation by up to so many pixels, padded with zeros
    flip: bool = False  # horizontal, with probability 1/2
    auto: str = "none"  # one of AUTO_AUGMENTS
    magnitude: float = 9.0  # of randaugment, 0..10
    magnitude_std: float = 0.5
    num_ops: int = 2  # operations of randaugment an image
    color_jitter: float = 0.0
    interpolation: str = "bicubic"  # 'random': bilinear or bicubic

    def __post_init__(self) -> None:
        """Checks every value."""
        freeze_lists(self)
        require_choice("data.augment.auto", self.auto, AUTO_AUGMENTS)
        require_choice("data.augment.interpolation", self.interpolation, (*INTERPOLATIONS, "random"))
        for name in ("shift_pixels", "num_ops"):
            require_int(f"data.augment.{name}", getattr(self, name), 0)
        for name in ("magnitude", "magnitude_std", "color_jitter"):
            require_number(f"data.augment.{name}", getattr(self, name))
        check_types(self, "data.augment.")
        for name in ("random_resized_crop", "aspect_ratio"):
            _check_range(f"data.augment.{name}", getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """Mixup, CutMix and random erasing of whole batches on the device; off by default."""

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    prob: float = 1.0  # of mixing a batch at all
    switch_prob: float = 0.5  # of cutmix where both alphas are positive
    erasing_prob: float = 0.0  # of random erasing, image by image
    erasing_area: Range = (0.02, 1 / 3)

    def __post_init__(self) -> None:
        """Checks every value."""
        freeze_lists(self)
        for name in ("mixup_alpha", "cutmix_alpha"):
            require_number(f"mixing.{name}", getattr(self, name))
        for name in ("prob", "switch_prob", "erasing_prob"):
            require_share(f"mixing.{name}", getattr(self, name))
        check_types(self, "mixing.")
        _check_range("mixing.erasing_area", self.erasing_area)

    @property
    def mixes(self) -> bool:
        """Whether mixup or CutMix is on, which makes labels soft."""
        return self.prob > 0 and (self.mixup_alpha > 0 or self.cutmix_alpha > 0)


def _check_range(name: str, bounds: Range | None) -> None:
    if bounds is not None and not 0 < bounds[0] <= bounds[1]:
        raise ValueError(f"{name} must be two rising positive numbers, got {bounds!r}")
