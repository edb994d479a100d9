"""The training loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vit_flax.config.checks import require_choice, require_number, require_positive, require_share
from vit_flax.config.field_types import check_types
from vit_flax.train.config.nested import freeze_lists

LOSSES = ("softmax", "binary", "contrastive", "sigmoid")
PAIR_LOSSES = ("contrastive", "sigmoid")  # contrastive, of image-text pairs
DISTILLATIONS = ("none", "soft", "hard")
BALANCED = "balanced"


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The training loss."""

    # 'binary': every class by itself, as DeiT-III; of images and texts 'contrastive' as CLIP, 'sigmoid' as SigLIP
    name: str = "softmax"
    label_smoothing: float = 0.0
    # 'softmax': one a class, as torch.nn.CrossEntropyLoss.weight; 'balanced': images / (classes * images of the class)
    class_weights: tuple[float, ...] | str | None = None
    # 'binary': of what has a class, as torch.nn.BCEWithLogitsLoss.pos_weight; 'balanced': images without over with it
    pos_weight: tuple[float, ...] | str | None = None
    target_threshold: float | None = None  # 'binary': soft labels above it become 1, others 0
    sum_classes: bool = False  # 'binary': sum over the classes instead of their mean
    distillation: str = "none"  # 'hard' or 'soft': the distillation head learns from a teacher's logits, as DeiT
    distillation_alpha: float = 0.5
    distillation_tau: float = 1.0
    # weight of the distillation of a teacher's intermediate features; 0: none
    feature_weight: float = 0.0
    feature_layers: tuple[int, ...] = (-1,)  # blocks of the model whose features learn
    teacher_layers: tuple[int, ...] | None = None  # of the teacher's, one for each; None: those of the same numbers

    def __post_init__(self) -> None:
        """Checks every value."""
        freeze_lists(self)
        require_choice("loss.name", self.name, LOSSES)
        for name, loss in (("class_weights", "softmax"), ("pos_weight", "binary")):
            value = getattr(self, name)
            if isinstance(value, int | float) and not isinstance(value, bool):
                value = (value,)
                object.__setattr__(self, name, value)
            if value is not None and self.name != loss:
                other = "pos_weight" if self.name == "binary" else "class_weights"
                raise ValueError(f"loss.{name} needs loss.name={loss}; {self.name} has loss.{other}")
            if isinstance(value, str):
                require_choice(f"loss.{name}", value, (BALANCED,))
            for number in value if isinstance(value, tuple) else ():
                require_positive(f"loss.{name}", number)
        require_choice("loss.distillation", self.distillation, DISTILLATIONS)
        require_share("loss.label_smoothing", self.label_smoothing, one=False)
        require_share("loss.distillation_alpha", self.distillation_alpha)
        require_positive("loss.distillation_tau", self.distillation_tau)
        require_number("loss.feature_weight", self.feature_weight)
        for name in ("feature_layers", "teacher_layers"):
            value = getattr(self, name)
            value = (value,) if isinstance(value, int) else value
            if value is not None and not (isinstance(value, tuple) and all(type(number) is int for number in value)):
                raise ValueError(f"loss.{name} must be numbers of blocks, got {value!r}")
            object.__setattr__(self, name, value)
        check_types(self, "loss.")

    def balanced(self, num_examples: int, counts: Sequence[int] | None) -> LossConfig:
        """Returns the loss with numbers in place of 'balanced'; ValueError where a class has no image.

        Args:
            num_examples: images to train on.
            counts: how many of them each class has.
        """
        wanted = [name for name in ("class_weights", "pos_weight") if getattr(self, name) == BALANCED]
        if not wanted:
            return self
        if counts is None or min(counts) < 1:
            raise ValueError(f"loss.{wanted[0]}=balanced needs training images of every class")
        weights = {
            "class_weights": tuple(num_examples / (len(counts) * count) for count in counts),
            # a class that every image has would weigh nothing
            "pos_weight": tuple(max(num_examples - count, 1) / count for count in counts),
        }
        return dataclasses.replace(self, **{name: weights[name] for name in wanted})
