"""ArrayRecord files of tf.train.Example messages, as TFDS writes them; TensorFlow is not needed."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_flax.preprocessing.decode import Decoding, decode_image
from vit_flax.train.config import DataConfig
from vit_flax.train.data.checks import is_plain
from vit_flax.train.data.label_lists import find_classes, multi_hot, numbered
from vit_flax.train.data.source import (
    SPLITS,
    DataError,
    Example,
    check_label,
    check_labels,
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


MULTI_LABEL = True  # reads several labels an image
LABEL_FEATURES = ("label", "labels", "tags", "classes")


class ArrayRecords:
    """Examples of the files of one split."""

    decoding: Decoding | None = None  # what is followed of what files say besides pixels

    def __init__(
        self, name: str, records: Sequence[bytes], keys: tuple[str, str], classes: list[str], channels: int,
        several: np.ndarray | None = None,
    ) -> None:  # fmt: skip
        self.name, self.records, self.keys = name, records, keys
        self.several = several  # (images, classes) of 0 and 1, where an image has several labels
        self.class_names = tuple(classes)
        self.image_shape = (None, None, channels)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def labels(self) -> np.ndarray:
        """All labels; every record is read for them, unless that is done."""
        if self.several is not None:
            return self.several
        return np.asarray([self._label(index, self._features(index)) for index in range(len(self))], np.int64)

    def __getitem__(self, index: int) -> Example:
        features = self._features(index)
        image = decode_image(self._encoded(index, features), self.image_shape[2], self.decoding)
        label = self._label(index, features) if self.several is None else self.several[index]
        return {"image": image, "label": label, "name": self.describe(index)}

    def check(self, index: int) -> None:
        """Reads the header of an image, and all of one whose header does not tell."""
        if not is_plain(self._encoded(index, self._features(index))):
            self[index]

    def lists(self) -> list[list[int | str]]:
        """Returns what every record's label holds, integers or texts."""
        found = []
        for index in range(len(self)):
            label = self._features(index)[self.keys[1]]
            found.append(
                [*label.int64_list.value, *(text.decode("utf-8", "replace") for text in label.bytes_list.value)]
            )
        return found

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
            hint = "; several labels an image are read with data.multi_label=True" if label.int64_list.value else ""
            raise DataError(f"{self.describe(index)}: feature {self.keys[1]!r} must hold one integer{hint}")
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

    Class names come from label.labels.txt, else their number from features.json or `num_classes`. With several labels
    an image, a feature holds them as a list (see label_lists), for which every record is read once.

    Raises:
        DataError: the folder has no such file or only TFRecord files, or the number of classes is not known.
        ImportError: grain, which reads the files, is not installed.
    """
    check_split("array_record", split, SPLITS)
    folder = require_folder("array_record", data.path)
    found = find_splits(data)
    called = pick_split(f"{folder} (the files' names)", split, found, [_files(folder)[0].name])
    name = f"array_record {folder}/{called}"
    records = _records(folder, called)
    label_key = data.label_key or "label"
    if data.multi_label and not data.label_key:
        there = parse(records[0], f"{name}[0]")
        label_key = next((key for key in LABEL_FEATURES if key in there), label_key)
    keys = (data.image_key or "image", label_key)
    names, count = _classes(folder, label_key, num_classes)
    if not data.multi_label:
        if not count:
            raise DataError(f"{folder}: has no {label_key}.labels.txt: how many classes are there? Set num_classes")
        return ArrayRecords(name, records, keys, names or numbered(count), channels)
    training = found.get("train", called)  # which tells the classes: another split may not have all of them
    title = f"array_record {folder}/{training}"
    lists = ArrayRecords(title, _records(folder, training), keys, [], channels).lists()
    is_hot, classes = find_classes(f"{title}: feature {label_key!r}", lists, names, count)
    if training != called:
        lists = ArrayRecords(name, records, keys, [], channels).lists()
    several = multi_hot(name, lists, is_hot, classes)
    check_labels(several, classes, name, every_class=split == "train")
    return ArrayRecords(name, records, keys, classes, channels, several)


def _records(folder: Path, called: str) -> Any:
    """Returns the records of a split."""
    try:
        from grain.python import ArrayRecordDataSource
    except ImportError as error:
        raise ImportError("ArrayRecord files are read by grain: pip install 'vit-linen[train]'") from error
    chosen = [file for file in _files(folder) if called in _words(file)]
    try:
        records: Any = ArrayRecordDataSource([str(file) for file in chosen])
        size = len(records)
    except Exception as error:  # what the reader's C++ side raises
        raise DataError(f"{chosen[0]}: cannot be read ({' '.join(str(error).split())[:200]})") from error
    if not size:
        raise DataError(f"array_record {folder}/{called}: holds no images")
    return records


def _files(folder: Path) -> list[Path]:
    files = sorted(file for file in folder.iterdir() if ".array_record" in file.name or ".arrayrecord" in file.name)
    if not files:
        hint = "; .tfrecord files cannot be read at random: prepare the data set with file_format='array_record'"
        raise DataError(f"{folder}: has no .array_record files{hint if any(folder.glob('*.tfrecord*')) else ''}")
    return files


def _words(file: Path) -> list[str]:
    return file.name.split(".")[0].split("-")


def _classes(folder: Path, label_key: str, num_classes: int | None) -> tuple[list[str] | None, int | None]:
    """Returns the classes' names and their count, None for what is not told."""
    names = folder / f"{label_key}.labels.txt"
    if names.is_file():
        found = names.read_text("utf-8").splitlines()
        return found, len(found)
    try:
        feature = json.loads((folder / "features.json").read_text("utf-8"))["featuresDict"]["features"][label_key]
        feature = feature.get("sequence", {}).get("feature", feature)  # of several labels an image
        return None, int(feature["classLabel"]["numClasses"])
    except (OSError, KeyError, TypeError, ValueError, AttributeError):
        return None, num_classes
