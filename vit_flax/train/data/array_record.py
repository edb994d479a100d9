"""ArrayRecord files of tf.train.Example messages, as TFDS writes them; TensorFlow is not needed."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from vit_flax.preprocessing.decode import Decoding, decode_image
from vit_flax.train.config import DataConfig
from vit_flax.train.data.checks import is_plain
from vit_flax.train.data.source import (
    SPLITS,
    DataError,
    Example,
    check_label,
    check_split,
    match_splits,
    pick_split,
    require_folder,
)


@functools.cache
def example_class() -> Any:
    """Returns the message class tf.train.Example, built from its definition.

    Reference: tensorflow/core/example/example.proto and feature.proto.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="vit_flax_example.proto", package="vit_flax", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str]) -> Any:
        added = file.message_type.add(name=name)
        for field_name, number, label, kind in fields:
            item = added.field.add(name=field_name, number=number, label=label)
            if kind.startswith("."):
                item.type, item.type_name = field.TYPE_MESSAGE, kind
            else:
                item.type = getattr(field, f"TYPE_{kind}")
        return added

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    message("BytesList", ("value", 1, many, "BYTES"))
    message("FloatList", ("value", 1, many, "FLOAT"))
    message("Int64List", ("value", 1, many, "INT64"))
    message(
        "Feature",
        ("bytes_list", 1, one, ".vit_flax.BytesList"),
        ("float_list", 2, one, ".vit_flax.FloatList"),
        ("int64_list", 3, one, ".vit_flax.Int64List"),
    )
    features = message("Features", ("feature", 1, many, ".vit_flax.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=one, type=field.TYPE_STRING)
    entry.field.add(name="value", number=2, label=one, type=field.TYPE_MESSAGE, type_name=".vit_flax.Feature")
    message("Example", ("features", 1, one, ".vit_flax.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("vit_flax.Example"))


class ArrayRecords:
    """Examples of the files of one split."""

    decoding: Decoding | None = None  # what is followed of what files say besides pixels

    def __init__(self, name: str, records: Any, keys: tuple[str, str], classes: list[str], channels: int) -> None:
        self.name, self.records, self.keys = name, records, keys
        self.class_names = tuple(classes)
        self.image_shape = (None, None, channels)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labels(self) -> np.ndarray:
        """All labels; every record is read for them."""
        return np.asarray([self._label(index, self._features(index)) for index in range(len(self))], np.int64)

    def __getitem__(self, index: int) -> Example:
        features = self._features(index)
        image = decode_image(self._encoded(index, features), self.image_shape[2], self.decoding)
        return {"image": image, "label": self._label(index, features), "name": self.describe(index)}

    def check(self, index: int) -> None:
        """Reads the header of an image, and all of one whose header does not tell."""
        if not is_plain(self._encoded(index, self._features(index))):
            self[index]

    def _features(self, index: int) -> Any:
        name = self.describe(index)
        features = parse(self.records[int(index)], name)
        for key in self.keys:
            if key not in features:
                raise DataError(f"{name}: has no feature {key!r}, only {', '.join(map(repr, sorted(features)))}")
        return features

    def _encoded(self, index: int, features: Any) -> bytes:
        image = features[self.keys[0]]
        if not image.bytes_list.value:
            raise DataError(f"{self.describe(index)}: feature {self.keys[0]!r} must hold an encoded image")
        return image.bytes_list.value[0]

    def _label(self, index: int, features: Any) -> int:
        label = features[self.keys[1]]
        if len(label.int64_list.value) != 1:
            raise DataError(f"{self.describe(index)}: feature {self.keys[1]!r} must hold one integer")
        return check_label(label.int64_list.value[0], len(self.class_names), self.describe(index))

    def describe(self, index: int) -> str:
        """Returns the split and the record of an image."""
        return f"{self.name}[{index}]"


def parse(record: bytes, name: str) -> Any:
    """Returns the features of a serialized tf.train.Example, by name.

    Raises:
        DataError: it is none.
    """
    from google.protobuf.message import DecodeError

    try:
        return example_class().FromString(record).features.feature
    except DecodeError as error:
        raise DataError(f"{name}: the record is not a tf.train.Example") from error


def find_splits(data: DataConfig) -> dict[str, str]:
    """Returns what the splits are called in the files' names, whichever there are."""
    folder = require_folder("array_record", data.path)
    return match_splits({word for file in _files(folder) for word in _words(file)})


def open_source(data: DataConfig, split: str, channels: int, num_classes: int | None) -> ArrayRecords:
    """Opens the files NAME-SPLIT.array_record-00000-of-00001 (or SPLIT*.array_record) of a TFDS folder.

    Class names come from label.labels.txt, else their number from features.json or `num_classes`.

    Raises:
        DataError: the folder has no such file or only TFRecord files, or the number of classes is not known.
        ImportError: grain, which reads the files, is not installed.
    """
    check_split("array_record", split, SPLITS)
    folder = require_folder("array_record", data.path)
    files = _files(folder)
    called = pick_split(f"{folder} (the files' names)", split, find_splits(data), [files[0].name])
    chosen = [file for file in files if called in _words(file)]
    try:
        from grain.python import ArrayRecordDataSource
    except ImportError as error:
        raise ImportError("ArrayRecord files are read by grain: pip install 'vit-linen[train]'") from error
    try:
        records = ArrayRecordDataSource([str(file) for file in chosen])
        size = len(records)  # pyright: ignore[reportArgumentType]
    except Exception as error:  # what the reader's C++ side raises
        raise DataError(f"{chosen[0]}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not size:
        raise DataError(f"array_record {folder}/{called}: holds no images")
    image_key, label_key = data.image_key or "image", data.label_key or "label"
    classes = _classes(folder, label_key, num_classes)
    return ArrayRecords(f"array_record {folder}/{called}", records, (image_key, label_key), classes, channels)


def _files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if ".array_record" in file.name or ".arrayrecord" in file.name)
    if not files:
        hint = "; .tfrecord files cannot be read at random: prepare the data set with file_format='array_record'"
        raise DataError(f"{folder}: has no .array_record files{hint if any(folder.glob('*.tfrecord*')) else ''}")
    return files


def _words(file: Path) -> list[str]:
    return file.name.split(".")[0].split("-")


def _classes(folder: Path, label_key: str, num_classes: int | None) -> list[str]:
    names = folder / f"{label_key}.labels.txt"
    if names.is_file():
        return names.read_text("utf-8").splitlines()
    count: Any = num_classes
    if (folder / "features.json").is_file():
        try:
            features = json.loads((folder / "features.json").read_text("utf-8"))["featuresDict"]["features"]
            count = int(features[label_key]["classLabel"]["numClasses"])
        except (KeyError, TypeError, ValueError):
            count = num_classes
    if not count:
        raise DataError(f"{folder}: has no {names.name}: how many classes are there? Set num_classes")
    return [str(label) for label in np.arange(count)]
