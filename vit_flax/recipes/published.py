"""Published runs on ImageNet-1k, from their papers and repositories; none has been run here."""

from __future__ import annotations

from vit_flax.config import DropRates
from vit_flax.presets import get_preset
from vit_flax.presets.preset import IMAGENET, INCEPTION
from vit_flax.train.config import (
    AugmentConfig,
    DataConfig,
    EmaConfig,
    LossConfig,
    MixingConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)


def _imagenet(folder: str | None, batch: int, augment: AugmentConfig, mean_std: object = IMAGENET) -> DataConfig:
    mean, std = mean_std  # pyright: ignore[reportGeneralTypeIssues]
    return DataConfig(
        name="image_folder", path=folder, batch_size=batch, augment=augment, mean=mean, std=std, crop_pct=0.875,
        eval_split="val", workers=8,
    )  # fmt: skip


def deit_s16(folder: str | None = None) -> TrainConfig:
    """DeiT-S/16 without distillation, 300 epochs: 79.8 % in the paper (arXiv 2012.12877); not measured here."""
    augment = AugmentConfig(
        random_resized_crop=(0.08, 1.0), flip=True, auto="randaugment", magnitude=9, magnitude_std=0.5,
        interpolation="bicubic",
    )  # fmt: skip
    return TrainConfig(
        model=get_preset("deit_small_patch16_224").config,
        drop=DropRates(drop_path_rate=0.1),
        data=_imagenet(folder, 1024, augment),
        mixing=MixingConfig(mixup_alpha=0.8, cutmix_alpha=1.0, erasing_prob=0.25),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_epochs=5, warmup_start=1e-3, final=1e-2),
        ema=EmaConfig(decay=0.99996),
        epochs=300,
        precision="bf16",
    )


def big_vision_s16(folder: str | None = None) -> TrainConfig:
    """big_vision's plain ViT-S/16, 90 epochs: 76.5 % in the paper (arXiv 2205.01580); not measured here."""
    augment = AugmentConfig(
        random_resized_crop=(0.05, 1.0), flip=True, auto="randaugment", num_ops=2, magnitude=10, magnitude_std=0.0,
        interpolation="bilinear",
    )  # fmt: skip
    model = get_preset("vit_small_patch16_224").config.replace(
        num_classes=1000, class_token=False, global_pool="avg", pos_embed="simple_sincos_2d"
    )
    return TrainConfig(
        model=model,
        data=_imagenet(folder, 1024, augment, INCEPTION),
        mixing=MixingConfig(mixup_alpha=0.2),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, clip_norm=1.0),
        schedule=ScheduleConfig(warmup_steps=10_000),
        epochs=90,
        precision="bf16",
    )


def deit3_s16(folder: str | None = None) -> TrainConfig:
    """DeiT-III-S/16 at 224 pixels, 800 epochs: 81.4 % in the paper (arXiv 2204.07118); not measured here."""
    augment = AugmentConfig(random_resized_crop=(0.08, 1.0), flip=True, auto="three_augment", color_jitter=0.3)
    return TrainConfig(
        model=get_preset("deit3_small_patch16_224").config,
        drop=DropRates(drop_path_rate=0.05),
        data=_imagenet(folder, 2048, augment),
        mixing=MixingConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
        loss=LossConfig(name="binary", sum_classes=False),
        optimizer=OptimizerConfig(name="lamb", learning_rate=4e-3, weight_decay=0.05, clip_norm=1.0),
        schedule=ScheduleConfig(warmup_epochs=5, warmup_start=2.5e-4, final=2.5e-3),
        epochs=800,
        precision="bf16",
    )


def t2t_vit_14(folder: str | None = None) -> TrainConfig:
    """T2T-ViT-14, 310 epochs: 81.5 % in the paper (arXiv 2101.11986); not measured here."""
    augment = AugmentConfig(
        random_resized_crop=(0.08, 1.0), flip=True, auto="randaugment", magnitude=9, magnitude_std=0.5, color_jitter=0.4
    )
    return TrainConfig(
        model=get_preset("t2t_vit_14").config,
        drop=DropRates(drop_path_rate=0.1),
        data=_imagenet(folder, 512, augment),
        mixing=MixingConfig(mixup_alpha=0.8, cutmix_alpha=1.0, erasing_prob=0.25),
        loss=LossConfig(label_smoothing=0.1),
        optimizer=OptimizerConfig(learning_rate=5e-4, weight_decay=0.05),
        schedule=ScheduleConfig(warmup_epochs=10, warmup_start=2e-3, final=2e-2),
        ema=EmaConfig(decay=0.99996),
        epochs=310,
        precision="bf16",
    )
