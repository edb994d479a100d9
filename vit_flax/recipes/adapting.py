"""Runs that begin with a checkpoint of any layout."""

from __future__ import annotations

from typing import Any

from vit_flax.config import DropRates, ViTConfig
from vit_flax.convert import Wish, open_checkpoint
from vit_flax.presets.preset import IMAGENET
from vit_flax.train.config import (
    AugmentConfig,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from vit_flax.train.data import open_source


def finetune(
    checkpoint: str,
    folder: str,
    data: str = "image_folder",
    image_size: Any = None,
    layout: str | None = None,
    config: str | None = None,
) -> TrainConfig:
    """All of a checkpoint's model on other images, with a new head; positions are resized to `image_size`.

    `config` names a preset for a file whose tensors do not tell everything. Command: vit-flax train finetune --set
    checkpoint=FILE --set folder=DIR --set image_size=160 --out runs/finetune. Accuracy and time: not measured.
    """
    adapted = _adapted(checkpoint, folder, data, image_size, layout, config)
    model = adapted["model"]
    return TrainConfig(
        drop=DropRates(drop_path_rate=0.1) if type(model) is ViTConfig and model.block == "standard" else DropRates(),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.05, layer_decay=0.75, clip_norm=1.0),
        schedule=ScheduleConfig(warmup_epochs=1),
        loss=LossConfig(label_smoothing=0.1),
        **adapted,
    )  # fmt: skip


def linear_probe(
    checkpoint: str,
    folder: str,
    data: str = "image_folder",
    image_size: Any = None,
    layout: str | None = None,
    config: str | None = None,
) -> TrainConfig:
    """A new head on a checkpoint's frozen model.

    `config` names a preset for a file whose tensors do not tell everything. Command: vit-flax train linear_probe --set
    checkpoint=FILE --set folder=DIR --out runs/probe. Accuracy and time: not measured.
    """
    return TrainConfig(
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=0.0, train=("head(_dist)?/.*",)),
        schedule=ScheduleConfig(),
        **_adapted(checkpoint, folder, data, image_size, layout, config),
    )


def _adapted(
    checkpoint: str, folder: str, data: str, image_size: Any, layout: str | None, config: str | None
) -> dict[str, Any]:
    """Returns what both recipes have: the checkpoint's model for the classes of the data, these, and the way in."""
    from vit_flax.reading import read_model  # imports JAX, which no other recipe needs

    overrides = {} if image_size is None else {"image_size": image_size}
    wish = Wish(layout=layout, config=config, overrides=overrides, own_classes=True)
    reading = read_model(open_checkpoint(checkpoint, wish), wish)
    if reading.resolved is None:
        told = "(to a recipe: --set config=PRESET, or `vit-flax convert` the file first)"
        raise ValueError(f"{reading.obstacle} {told}")
    model = reading.config
    source: dict[str, Any] = {"name": data, "path": folder}
    if model.in_chans == 3:
        source |= {"mean": IMAGENET[0], "std": IMAGENET[1]}
    classes = len(open_source(DataConfig(**source), "train", model.in_chans).class_names)
    return {
        "model": model.replace(num_classes=classes),
        "data": DataConfig(**source, batch_size=64, augment=AugmentConfig(random_resized_crop=(0.5, 1.0), flip=True)),
        "epochs": 10,
        "init_from": checkpoint,
        "init_layout": layout,
        "init_config": config,
        "export_layout": layout,
    }
