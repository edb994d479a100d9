"""Contrastive runs on images with texts: CLIP, SigLIP, and one on drawn shapes for a laptop."""

from __future__ import annotations

from vit_flax.config import TextConfig, TwoTowersConfig, ViTConfig
from vit_flax.presets import get_preset
from vit_flax.train.config import (
    AugmentConfig,
    DataConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)

_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def shapes() -> TrainConfig:
    """A CLIP of two towers of 64 channels and 3 blocks, on 4,152 drawings of 32 pixels and their captions.

    Command: vit-flax train shapes --out runs/shapes. Recall at 1 among the 115 test captions, which are absent from
    training: 82 % from image to text, 85 % from text to image, in 6 minutes on two cores (AMD EPYC, Zen 5) with other
    work beside.
    """
    tower = {"embed_dim": 64, "depth": 3, "num_heads": 4, "mlp_ratio": 2.0}
    return TrainConfig(
        model=TwoTowersConfig(
            image=ViTConfig(
                image_size=(32, 32), patch_size=(8, 8), num_classes=64, head_bias=False, class_token=False,
                global_pool="avg", **tower,
            ),
            text=TextConfig(vocab_size=26, context_length=12, output_dim=64, **tower),
        ),
        data=DataConfig(name="shapes", batch_size=128),
        loss=LossConfig(name="contrastive"),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.05, clip_norm=1.0),
        schedule=ScheduleConfig(warmup_epochs=2),
        epochs=20,
        log_every=16,
    )  # fmt: skip


def clip_b16(folder: str | None = None, tokenizer: str | None = None) -> TrainConfig:
    """CLIP's ViT-B/16 on images with texts: 32,768 pairs a step, 32 epochs (arXiv 2103.00020, table 19).

    Command: vit-flax train clip_b16 --set folder=DIR --set tokenizer=hf://openai/clip-vit-base-patch16 --out
    runs/clip, where DIR holds .tar files of images and texts; with --set data.name=parquet_pairs parquet files. Recall
    and time: not measured.
    """
    return TrainConfig(
        model=get_preset("openai/clip-vit-base-patch16_with_text").config,
        data=_pairs(folder, tokenizer, 32_768, _CLIP_MEAN, _CLIP_STD),
        loss=LossConfig(name="contrastive"),
        optimizer=OptimizerConfig(learning_rate=5e-4, weight_decay=0.2, b2=0.98, eps=1e-6),
        schedule=ScheduleConfig(warmup_steps=2000),
        epochs=32,
        precision="bf16",
        remat="full",
        scan=True,  # 24 blocks, whose program a TPU's compiler takes minutes of CPU for
        mesh=MeshConfig(data=-1),
    )  # fmt: skip


def siglip_b16(folder: str | None = None, tokenizer: str | None = None) -> TrainConfig:
    """SigLIP's ViT-B/16 on images with texts: 32,768 pairs a step, sigmoid (arXiv 2303.15343, section 4).

    Command: vit-flax train siglip_b16 --set folder=DIR --set tokenizer=hf://google/siglip-base-patch16-224 --out
    runs/siglip. Recall and time: not measured.
    """
    return TrainConfig(
        model=get_preset("google/siglip-base-patch16-224_with_text").config,
        data=_pairs(folder, tokenizer, 32_768, (0.5,), (0.5,)),
        loss=LossConfig(name="sigmoid"),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=1e-4, b2=0.95, clip_norm=1.0),
        schedule=ScheduleConfig(warmup_steps=6500),
        epochs=10,
        precision="bf16",
        remat="full",
        scan=True,  # 24 blocks, whose program a TPU's compiler takes minutes of CPU for
        mesh=MeshConfig(data=-1),
    )  # fmt: skip


def _pairs(
    folder: str | None, tokenizer: str | None, batch_size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> DataConfig:
    return DataConfig(
        name="webdataset_pairs", path=folder, tokenizer=tokenizer, batch_size=batch_size, eval_batch_size=1024,
        mean=mean, std=std, augment=AugmentConfig(random_resized_crop=(0.9, 1.0)),
    )  # fmt: skip
