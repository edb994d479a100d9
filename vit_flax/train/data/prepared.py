"""Evaluation preprocessing of a data config: its fields to `Preprocessing` and back."""

from __future__ import annotations

from vit_flax.convert.orbax_folder import PREPROCESSING_FIELDS
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.train.config import DataConfig


def preprocessing_of(
    data: DataConfig, image_size: tuple[int, int], channels: int, class_names: tuple[str, ...] | None = None
) -> Preprocessing:
    """Returns what prepares images for a model's evaluation, and names its classes."""
    values = {name: getattr(data, name) for name in PREPROCESSING_FIELDS}
    value = Preprocessing(image_size=image_size, class_names=class_names, **values)
    return value.for_model(image_size, channels)


def data_fields(value: Preprocessing, image_size: tuple[int, int], channels: int) -> dict[str, object]:
    """Returns the fields of a data config that say the same for a model of that size.

    Raises:
        ValueError: the numbers of channels differ.
    """
    if value.varies:  # a batch's images are of one size
        value = value.of_one_size(image_size)
    value = value.for_model(image_size, channels)
    return {name: getattr(value, name) for name in PREPROCESSING_FIELDS}
