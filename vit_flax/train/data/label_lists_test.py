"""Several labels an image in tar files and ArrayRecord files, in every form that is read, through to a training."""

import io
import json
import pickle
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_flax.cli.main import main
from vit_flax.train.config import DataConfig
from vit_flax.train.data import DataError, open_source
from vit_flax.train.data.array_record import example_class

NAMES = ("cat", "dog", "old")
TRUTH = [[1, 0, 1], [0, 0, 0], [0, 1, 1], [1, 1, 0]]
NUMBERS = [[0, 2], [], [1, 2], [0, 1]]
WORDS = [[NAMES[number] for number in row] for row in NUMBERS]


def _png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(file, "PNG")
    return file.getvalue()


def _write_tars(folder: Path, suffix: str, labels: Sequence[bytes]) -> None:
    for split, count in (("train", len(labels)), ("val", 2)):
        with tarfile.open(folder / f"{split}-0.tar", "w") as archive:
            for number, label in enumerate(labels[:count]):
                for name, content in ((f"{number}.png", _png()), (f"{number}.{suffix}", label)):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))


def _write_records(folder: Path, labels: Sequence[Sequence[Any]], key: str = "labels") -> None:
    module = pytest.importorskip("array_record.python.array_record_module")
    for split, count in (("train", len(labels)), ("val", 2)):
        writer = module.ArrayRecordWriter(str(folder / f"x-{split}.array_record-00000-of-00001"), "group_size:1")
        for row in labels[:count]:
            example = example_class()()
            example.features.feature["image"].bytes_list.value.append(_png())
            of = example.features.feature[key]
            texts = [value.encode() for value in row if isinstance(value, str)]
            (of.bytes_list if texts else of.int64_list).value.extend(texts or row)
            writer.write(example.SerializeToString())
        writer.close()


def _open(name: str, folder: Path, split: str = "train", **fields: Any) -> Any:
    return open_source(DataConfig(name=name, path=str(folder), multi_label=True, **fields), split, 1)


def _json(rows: Sequence[Any], key: str = "labels") -> list[bytes]:
    return [json.dumps({"width": 8, key: row}).encode() for row in rows]


@pytest.mark.parametrize(
    ("suffix", "labels", "classes", "file"),
    [
        ("cls", [b"0 2\n", b"", b"1 2", b"0 1"], ("0", "1", "2"), False),
        ("cls", [b"cat|old", b"", b"dog|old", b"cat|dog"], NAMES, False),
        ("cls", [b"[0, 2]", b"[]", b"[1, 2]", b"[0, 1]"], NAMES, True),
        ("json", _json(NUMBERS), NAMES, True),
        ("json", _json(WORDS, "tags"), NAMES, False),
        ("json", _json(TRUTH), NAMES, True),
        ("json", _json(["cat,old", "", "dog,old", "cat,dog"]), NAMES, False),
    ],
)
def test_every_form_in_tar_files_says_the_same(
    suffix: str, labels: list[bytes], classes: tuple[str, ...], file: bool, tmp_path: Path
) -> None:
    _write_tars(tmp_path, suffix, labels)
    if file:
        (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    train, val = (pickle.loads(pickle.dumps(_open("webdataset", tmp_path, split))) for split in ("train", "val"))
    assert train.class_names == val.class_names == classes
    np.testing.assert_array_equal(train.labels, TRUTH)
    np.testing.assert_array_equal(val.labels, TRUTH[:2])
    np.testing.assert_array_equal(train[2]["label"], TRUTH[2])


@pytest.mark.parametrize(
    ("labels", "file", "classes"),
    [(NUMBERS, True, NAMES), (NUMBERS, False, ("0", "1", "2")), (WORDS, False, NAMES), (TRUTH, True, NAMES)],
)
def test_every_form_in_array_records_says_the_same(
    labels: list[list[Any]], file: bool, classes: tuple[str, ...], tmp_path: Path
) -> None:
    _write_records(tmp_path, labels)
    if file:
        (tmp_path / "labels.labels.txt").write_text("\n".join(NAMES))
    train, val = (pickle.loads(pickle.dumps(_open("array_record", tmp_path, split))) for split in ("train", "val"))
    assert train.class_names == val.class_names == classes
    np.testing.assert_array_equal(train.labels, TRUTH)
    np.testing.assert_array_equal(val[1]["label"], TRUTH[1])


def test_what_lists_cannot_say(tmp_path: Path) -> None:
    for rows, said in (
        ([[0, 1], [1, 0]], "may hold classes' numbers or a 0 or 1 for each class: list the classes' names"),
        ([[0, 3]], "no image of class '1'"),
        ([[0, "cat"]], "must hold lists of classes' numbers or names"),
        ([[0.5]], "must hold lists of classes' numbers or names"),
        ([[-1, 0]], "label -1 is out of range"),
        (["[0, 2"], "'[0, 2' is no JSON list"),
    ):
        _write_tars(tmp_path, "json", _json(rows))
        with pytest.raises(DataError) as caught:
            _open("webdataset", tmp_path)
        assert said in str(caught.value)
    _write_tars(tmp_path, "json", _json(NUMBERS))
    with pytest.raises(DataError, match="has no label"):  # one label an image is asked for, and there is another key
        open_source(DataConfig(name="webdataset", path=str(tmp_path)), "train", 1)
    with pytest.raises(DataError, match=r"must be an integer, got \[0, 2\]; several labels .* data\.multi_label=True"):
        open_source(DataConfig(name="webdataset", path=str(tmp_path), label_key="labels"), "train", 1)
    _write_records(tmp_path, NUMBERS, "label")
    (tmp_path / "label.labels.txt").write_text("\n".join(NAMES))
    with pytest.raises(DataError, match=r"must hold one integer; several labels .* data\.multi_label=True"):
        open_source(DataConfig(name="array_record", path=str(tmp_path)), "train", 1)[0]


@pytest.mark.parametrize("name", ["webdataset", "array_record"])
def test_a_training_of_several_labels(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "webdataset":
        _write_tars(tmp_path, "cls", [b"cat old", b"", b"dog old", b"cat dog"])
    else:
        _write_records(tmp_path, WORDS)
    fields = {
        "data.name": name, "data.path": tmp_path, "data.multi_label": True, "loss.name": "binary",
        "loss.label_smoothing": 0.0, "data.batch_size": 4, "epochs": 1, "schedule.warmup_epochs": 0,
        "model.num_classes": 3, "model.embed_dim": 8, "model.depth": 1, "model.num_heads": 1,
    }  # fmt: skip
    settings = [word for field, value in fields.items() for word in ("--set", f"{field}={value}")]
    assert main(["train", "digits", *settings, "--out", str(tmp_path / "run")]) == 0
    assert "val mAP" in capsys.readouterr().out
    kept = json.loads((tmp_path / "run" / "best" / "preprocessing.json").read_text())
    assert kept["class_names"] == list(NAMES)
