"""What the parts of a training config require of each other; each function raises ValueError naming the fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_flax.train.config.augmentation import MixingConfig
from vit_flax.train.config.loss import PAIR_LOSSES

if TYPE_CHECKING:
    from vit_flax.train.config.run import TrainConfig


def check_consistency(config: TrainConfig) -> None:
    """Checks that the parts, each right by itself, fit each other."""
    if config.data.batch_size % config.accumulation:
        raise ValueError(
            f"data.batch_size {config.data.batch_size} is not divisible by accumulation {config.accumulation}"
        )
    _check_teacher(config)
    if config.has_pairs:
        _check_pairs(config)
    elif config.loss.name in PAIR_LOSSES:
        raise ValueError(f"loss.name={config.loss.name} needs a two-tower model")
    elif config.model.num_classes < 1:
        raise ValueError("a model to train needs num_classes of 1 or more")
    elif config.image_model.global_pool == "none":
        raise ValueError("model.global_pool=none gives logits for each patch, and labels are of images: avg pools them")
    _check_images(config)
    if config.lora is not None and (config.optimizer.freeze or config.optimizer.train):
        which = "freeze" if config.optimizer.freeze else "train"
        raise ValueError(
            f"with lora all is frozen but the adapters and lora.modules_to_save: leave optimizer.{which} out"
        )
    _check_labels(config)


def _check_teacher(config: TrainConfig) -> None:
    """Checks that there is a teacher where something is to be learned from one."""
    has_teacher = config.teacher is not None and config.teacher_model is not None
    if config.loss.distillation != "none" and not (has_teacher and config.model.head_dist):
        raise ValueError("distillation needs teacher, teacher_model and a model with head_dist=True")
    learns = config.loss.distillation != "none" or config.loss.feature_weight
    if config.teacher is not None and not learns and not config.has_pairs:
        raise ValueError("nothing is learnt from the teacher: loss.distillation=hard or soft, or loss.feature_weight")
    if not config.loss.feature_weight or config.has_pairs:
        return
    if not has_teacher or config.teacher_model is None:
        raise ValueError("loss.feature_weight needs teacher, its weights, and teacher_model, a config or preset")
    if config.lora is not None:
        raise ValueError("loss.feature_weight trains projections beside the model: leave lora out")
    from vit_flax.train.feature_distillation import check_features  # which imports the models

    check_features(config.image_model, config.teacher_model, config.loss.feature_layers, config.loss.teacher_layers)


def _check_pairs(config: TrainConfig) -> None:
    """Checks the parts of a config with a two-tower model."""
    name = "sigmoid" if config.model.logit_bias else "contrastive"
    if config.loss.name != name:
        raise ValueError(f"a model with logit_bias={config.model.logit_bias} is trained by loss.name={name}")
    wrong = {
        "accumulation": config.accumulation != 1,  # whose parts would not see each other's texts
        "mixing": config.mixing != MixingConfig(),
        "data.multi_label": config.data.multi_label,
        "data.sampler": config.data.sampler != "shuffle",
        "loss.label_smoothing": bool(config.loss.label_smoothing),
        "loss.distillation": config.loss.distillation != "none",
        "loss.feature_weight": bool(config.loss.feature_weight),
        "optimizer.layer_decay": config.optimizer.layer_decay is not None,
        "lora": config.lora is not None,
        "teacher": config.teacher is not None,
    }
    if named := [name for name, value in wrong.items() if value]:
        raise ValueError(f"images with texts are trained without {', '.join(named)}")
    if config.data.batch_size < 2:
        raise ValueError("the pairs of a batch are compared with each other: data.batch_size must be at least 2")


def _check_images(config: TrainConfig) -> None:
    """Checks that images are prepared as the model takes them."""
    channels = config.model.in_chans
    for name in ("mean", "std"):
        count = len(getattr(config.data, name))
        if count not in (1, channels):
            raise ValueError(f"data.{name} has {count} numbers for {channels} channels")
    if config.data.image_size not in (None, config.model.image_size):
        raise ValueError(
            f"data.image_size {config.data.image_size} is not the model's {config.model.image_size}: "
            "set model.image_size"
        )


def _check_labels(config: TrainConfig) -> None:
    """Checks that the loss is one for such labels."""
    loss, classes = config.loss, config.model.num_classes
    if config.data.multi_label:
        if loss.name != "binary":
            raise ValueError("data.multi_label needs loss.name=binary: each class by itself")
        if loss.label_smoothing:
            raise ValueError("data.multi_label has no label smoothing: set loss.label_smoothing=0")
        if loss.distillation != "none":
            raise ValueError("distillation is for images of one class each, not for data.multi_label")
    for name in ("class_weights", "pos_weight"):
        value = getattr(loss, name)
        if isinstance(value, tuple) and len(value) != classes and not (name == "pos_weight" and len(value) == 1):
            raise ValueError(f"loss.{name} has {len(value)} numbers for {classes} classes")
