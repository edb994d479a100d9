"""Where training images come from, how they are prepared and batched."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from vit_flax.config.checks import require_choice, require_int, require_number, require_positive, require_share
from vit_flax.config.field_types import check_types
from vit_flax.preprocessing.evaluation import CROP_MODES, INTERPOLATIONS, RESIZERS
from vit_flax.train.config.augmentation import AugmentConfig
from vit_flax.train.config.nested import build, freeze_lists

SAMPLERS = ("shuffle", "balanced")
_CHOICES = {"sampler": SAMPLERS, "crop_mode": CROP_MODES, "interpolation": INTERPOLATIONS, "resizer": RESIZERS}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where images come from and how they are batched.

    A loader's batches are the same for any number of processes: batch k of an epoch is rows k*B..(k+1)*B of one
    permutation drawn from the seed, of which process p of P takes its share of B/P rows.
    """

    NESTED: ClassVar[dict[str, type]] = {"augment": AugmentConfig}

    name: str = "digits"  # a source of vit_flax.train.data
    path: str | None = None  # file or folder; None for a source that needs none
    train_split: str = "train"
    eval_split: str | None = None  # selects the best weights; None: 'val', or 'test' where there is no other
    multi_label: bool = False  # multi-hot labels: an image has any number of classes
    sampler: str = "shuffle"  # 'balanced': class-balanced sampling with replacement, as WeightedRandomSampler
    val_share: float = 0.2  # of every class, held out for evaluation where the data come without splits
    image_key: str | None = None  # column or feature of the image; None: found by its usual names
    label_key: str | None = None
    text_key: str | None = None  # of the text, where images have one
    # of texts: a folder, a sentencepiece file or hf://owner/name; None: the source's own
    tokenizer: str | None = None
    image_size: tuple[int, int] | None = None  # (height, width) of the model's input; None: the model's
    batch_size: int = 128  # of all processes and accumulation steps together
    eval_batch_size: int | None = None  # None: batch_size
    augment: AugmentConfig = AugmentConfig()
    crop_pct: float = 1.0  # evaluation: the side of the centre crop is this part of the resized image's
    # evaluation prepares images as vit_flax.preprocessing.evaluation.Preprocessing says, whose fields these are
    crop_mode: str = "center"  # 'squash' resizes to the model's size without regard to the aspect ratio
    interpolation: str = "bicubic"  # how images are resized
    resize_size: tuple[int, int] | None = None  # (height, width) to resize to; None: the model's divided by crop_pct
    resizer: str = "pillow"
    fill: tuple[int, ...] | None = None
    exif: bool = False  # apply the EXIF orientation; in training as well
    pixel_range: tuple[float, float] | None = None  # black and white of pixels wider than 8 bits; in training as well
    mean: tuple[float, ...] = (0.5,)  # of the channels, pixels in 0..1; one number is for all channels
    std: tuple[float, ...] = (0.5,)
    workers: int = 0  # processes that read and augment; 0: threads of this one
    threads: int | None = None  # that read and augment, in each process; None: as many as it has cores, at most 16
    prefetch: int = 2  # batches prefetched
    max_bad_share: float = 0.01  # the run stops when more of the images than this cannot be read

    def __post_init__(self) -> None:
        """Checks every value."""
        freeze_lists(self)
        object.__setattr__(self, "augment", build(AugmentConfig, self.augment, "data.augment."))
        if isinstance(self.image_size, int):
            object.__setattr__(self, "image_size", (self.image_size, self.image_size))
        for name, known in _CHOICES.items():
            require_choice(f"data.{name}", getattr(self, name), known)
        if self.sampler == "balanced" and self.multi_label:
            raise ValueError("data.sampler=balanced is for images of one class each; data.multi_label has "
                             "loss.pos_weight=balanced")  # fmt: skip
        require_int("data.batch_size", self.batch_size, 1)
        if self.eval_batch_size is not None:
            require_int("data.eval_batch_size", self.eval_batch_size, 1)
        require_int("data.workers", self.workers, 0)
        require_int("data.prefetch", self.prefetch, 0)
        if self.threads is not None:
            require_int("data.threads", self.threads, 1)
        require_share("data.val_share", self.val_share, one=False)
        require_share("data.max_bad_share", self.max_bad_share)
        require_share("data.crop_pct", self.crop_pct)
        require_positive("data.crop_pct", self.crop_pct)
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, tuple):
                object.__setattr__(self, name, (value,))
        for value in self.mean:
            require_number("data.mean", value)
        for value in self.std:
            require_positive("data.std", value)
        check_types(self, "data.")

    def steps_per_epoch(self, num_examples: int) -> int:
        """Returns the number of whole batches in that many images; ValueError where there are fewer than one has."""
        if num_examples < self.batch_size:
            raise ValueError(f"{num_examples} training images are fewer than data.batch_size {self.batch_size}")
        return num_examples // self.batch_size
