"""Runs for a laptop."""

from __future__ import annotations

from vit_flax.config import T2TViTConfig, ViTConfig
from vit_flax.train.config import (
    AugmentConfig,
    DataConfig,
    EmaConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)

_FASHION_MEAN, _FASHION_STD = (0.2860,), (0.3530,)  # of the training images' pixels in 0..1


def digits() -> TrainConfig:
    """A ViT of 60 thousand parameters on scikit-learn's 8x8 digits.

    Command: vit-flax train digits --out runs/digits. Accuracy and time: not measured.
    """
    return TrainConfig(
        model=ViTConfig(
            image_size=(8, 8), patch_size=(2, 2), in_chans=1, num_classes=10, embed_dim=48, depth=3, num_heads=4,
            mlp_ratio=2.0,
        ),
        data=DataConfig(
            name="digits", batch_size=64, mean=(0.305,), std=(0.376,), augment=AugmentConfig(shift_pixels=1)
        ),
        optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.05, clip_norm=1.0),
        schedule=ScheduleConfig(warmup_epochs=5),
        loss=LossConfig(label_smoothing=0.1),
        epochs=60,
        log_every=22,
    )  # fmt: skip


def fashion_mnist(folder: str | None = None) -> TrainConfig:
    """A ViT on Fashion-MNIST: 49 patches of 4 pixels, width 128, 4 blocks of two heads.

    Command: vit-flax train fashion_mnist --set folder=DIR --out runs/fashion, with
    XLA_FLAGS=--xla_force_host_platform_device_count=2 (`make train`). Accuracy: 91.19 % top-1 in 15 minutes on
    two cores (AMD EPYC, Zen 4).
    """
    model = ViTConfig(
        image_size=(28, 28), patch_size=(4, 4), in_chans=1, num_classes=10, embed_dim=128, depth=4, num_heads=2,
        mlp_ratio=2.0, class_token=False, global_pool="avg", pos_embed="simple_sincos_2d",
    )  # fmt: skip
    return _fashion(model, folder, epochs=10)


def fashion_mnist_t2t(folder: str | None = None) -> TrainConfig:
    """A T2T-ViT on Fashion-MNIST: three soft splits of 3 pixels, 196 and 49 tokens attend at width 32, 16 at 128.

    Command: vit-flax train fashion_mnist_t2t --set folder=DIR --out runs/t2t, with
    XLA_FLAGS=--xla_force_host_platform_device_count=2. Accuracy: 91.73 % top-1 in 10 minutes on two cores (AMD
    EPYC, Zen 4).
    """
    model = T2TViTConfig(
        image_size=(28, 28), in_chans=1, num_classes=10, embed_dim=128, depth=4, num_heads=2, mlp_ratio=2.0,
        softsplit_kernels=(3, 3, 3), token_chan=32, token_num_heads=1, value_skip=True, pos_embed="sinusoid",
    )  # fmt: skip
    return _fashion(model, folder, epochs=8)


def _fashion(model: ViTConfig, folder: str | None, epochs: float) -> TrainConfig:
    return TrainConfig(
        model=model,
        data=DataConfig(
            name="fashion_mnist", path=folder, batch_size=256, mean=_FASHION_MEAN, std=_FASHION_STD,
            augment=AugmentConfig(flip=True),
        ),
        optimizer=OptimizerConfig(
            name="muon", learning_rate=7e-3, weight_decay=0.05, momentum=0.95, b2=0.98, clip_norm=1.0
        ),
        schedule=ScheduleConfig(warmup_epochs=0.5),
        loss=LossConfig(label_smoothing=0.05),
        ema=EmaConfig(decay=0.998, warmup=True, warmup_power=0.75),
        epochs=epochs,
        precision="bf16",
        log_every=50,
    )  # fmt: skip
