"""Runs that start from a checkpoint of any layout."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

from vit_flax.config import DropRates, ViTConfig
from vit_flax.convert import LAYOUTS, Wish, get_layout, layout_to_write, open_checkpoint, own_layout
from vit_flax.convert.wish import preset_or_file
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

logger = logging.getLogger(__name__)


def finetune(
    checkpoint: str,
    folder: str,
    data: str = "image_folder",
    image_size: object = None,
    layout: str | None = None,
    config: str | None = None,
    multi_label: bool = False,
    source: Mapping[str, object] | None = None,
    entry: str | None = None,
    told: Mapping[str, object] | None = None,
) -> TrainConfig:
    """Full fine-tuning of a checkpoint with a new head; position embeddings are resized to `image_size`.

    Preprocessing and layout are the checkpoint's. `config` names a preset for a file whose tensors do not determine
    every field, `told` has fields of the model (--set model.num_heads=3), `entry` selects one of several weights; with
    `multi_label` an image has any number of classes; `source` has further fields of the data, such as label_key.
    Command: vit-flax train finetune --set checkpoint=FILE --set folder=DIR --set image_size=160 --out runs/finetune.
    Accuracy and time: not measured.
    """
    return TrainConfig(
        drop=DropRates(drop_path_rate=0.1),
        optimizer=OptimizerConfig(learning_rate=1e-4, weight_decay=0.05, layer_decay=0.75, clip_norm=1.0),
        schedule=ScheduleConfig(warmup_epochs=1),
        loss=LossConfig(name="binary") if multi_label else LossConfig(label_smoothing=0.1),
        **_adapted(checkpoint, data, folder, image_size, layout, config, multi_label, source, entry, told),
    )


def linear_probe(
    checkpoint: str,
    folder: str,
    data: str = "image_folder",
    image_size: object = None,
    layout: str | None = None,
    config: str | None = None,
    multi_label: bool = False,
    source: Mapping[str, object] | None = None,
    entry: str | None = None,
    told: Mapping[str, object] | None = None,
) -> TrainConfig:
    """A new head on a checkpoint's frozen model; parameters are those of finetune.

    Command: vit-flax train linear_probe --set checkpoint=FILE --set folder=DIR --out runs/probe. Accuracy and time: not
    measured.
    """
    return TrainConfig(
        optimizer=OptimizerConfig(name="sgd", learning_rate=0.1, weight_decay=0.0, train=("head(_dist)?/.*",)),
        schedule=ScheduleConfig(),
        loss=LossConfig(name="binary" if multi_label else "softmax"),
        **_adapted(checkpoint, data, folder, image_size, layout, config, multi_label, source, entry, told),
    )


def _adapted(
    checkpoint: str,
    data: str,
    folder: str,
    image_size: Any,
    layout: str | None,
    config: str | None,
    multi_label: bool,
    source: Mapping[str, Any] | None,
    entry: str | None,
    told: Mapping[str, object] | None,
) -> dict[str, Any]:
    """Returns the parts of both recipes: the checkpoint's model with the data's classes, the data, and the weights."""
    from vit_flax.preparing import find_preprocessing
    from vit_flax.reading import read_model  # imports JAX, which no other recipe needs
    from vit_flax.train.data.prepared import data_fields

    overrides = {} if image_size is None else {"image_size": image_size}
    known_config = None if config is None else preset_or_file(config)
    wish = Wish(layout=layout, config=known_config, overrides=overrides, entry=entry, own_classes=True, float32=True,
                tower="image")  # fmt: skip
    opened = open_checkpoint(checkpoint, wish)
    reading = read_model(opened, wish)
    if reading.resolved is None and told:
        known = {name: value for name, value in told.items() if name in reading.layout.config_class.fields}
        reading = read_model(opened, dataclasses.replace(wish, overrides={**known, **overrides}))
    model = reading.config
    assert isinstance(model, ViTConfig)  # as the wish says
    preset = known_config if isinstance(known_config, str) else None
    found = find_preprocessing(opened, preset, model.image_size)
    fields: dict[str, Any] = {"name": data, "path": folder, "multi_label": multi_label}
    given = dict(source or {})
    if found.is_told:
        fields |= data_fields(found.value, model.image_size, model.in_chans)
    elif model.in_chans == 3 and not {"mean", "std"} <= given.keys():
        fields |= {"mean": IMAGENET[0], "std": IMAGENET[1]}
        logger.warning("%s: nothing tells how its images are prepared: ImageNet's mean and std are taken (else --set "
                       "data.mean=... and data.std=...)", checkpoint)  # fmt: skip
    augment = AugmentConfig(random_resized_crop=(0.5, 1.0), flip=True)
    chosen = DataConfig(**{**fields, "batch_size": 64, "augment": augment, **given})
    classes = len(open_source(chosen, chosen.train_split, model.in_chans).class_names)
    model, export_layout = classifier_of(model, classes, reading.layout.name)
    return {
        "model": model,
        "data": chosen,
        "epochs": 10,
        "init_from": checkpoint,
        "init_layout": layout,
        "init_config": config,
        "init_entry": entry,
        "export_layout": export_layout or layout,
    }


def pooled(model: ViTConfig) -> ViTConfig:
    """Returns a model that a classifier can be put on: a trunk, which has no pooling, gets it."""
    return model.replace(global_pool="token" if model.class_token else "avg") if model.global_pool == "none" else model


def classifier_of(model: ViTConfig, classes: int, layout: str) -> tuple[ViTConfig, str | None]:
    """Returns a checkpoint's model with a head of that many classes, and the layout to write it in.

    The head is the classifier of the checkpoint's own family where its layout has one, with the family's pooling and
    norms and without parts of pre-training (the mask token, the tanh pooler). A layout without a classifier keeps the
    model as it is, in the first layout of the same library that holds it, otherwise the first of all, otherwise this
    library's own parameters; None: no layout holds it.
    """
    given = get_layout(layout)
    model = model.replace(num_classes=classes, **given.classifier(model))
    if model.representation_size is not None:
        model = model.replace(representation_size=None)
    model = pooled(model)
    poolings = dict.fromkeys((model.global_pool, "token_avg", "avg"))
    siblings = [name for name, other in LAYOUTS.items() if given.is_transformers and other.is_transformers]
    for name, pools in ((layout, poolings), *((name, (model.global_pool,)) for name in (*siblings, None))):
        for pool in pools:
            for mask_token in dict.fromkeys((False, model.mask_token)):
                try:
                    tried = model.replace(global_pool=pool, mask_token=mask_token)
                    return tried, layout_to_write(tried, name).name
                except ValueError:  # a ConversionError is one: the next is tried, and the caller asks again at last
                    continue
    try:
        own = own_layout(model).name
    except ValueError:
        return model, None
    logger.warning("no other library has such a model with a classifier: it is written as this library's own "
                   "parameters (layout %s)", own)  # fmt: skip
    return model, own
