"""Files that give each image any number of classes, in every form that is read."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_flax.train.config import DataConfig
from vit_flax.train.data import DataError, open_source
from vit_flax.train.data.label_files import read_label_file
from vit_flax.train.data.loader import make_loader

FILES = ["a.png", "b.png", "sub/c.png"]
TRUTH = [[1, 0, 1], [0, 0, 0], [0, 1, 1]]  # of the classes cat, dog, old
JSON = {"a.png": ["cat", "old"], "b.png": [], "sub/c.png": ["dog", "old"]}
FORMS = {
    "labels.csv": "file_name,labels\na.png,cat|old\nb.png,\nsub/c.png,old|dog\n",
    "metadata.csv": "image,cat,dog,old\na.png,1,0,1\nb.png,0,0,0\nsub/c.png,0,1.0,1\n",
    "labels.json": json.dumps(JSON),
    "metadata.jsonl": "".join(json.dumps({"file_name": k, "labels": v}) + "\n" for k, v in JSON.items()),
    "labels.jsonl": "".join(json.dumps({"path": k, "tags": ";".join(v)}) + "\n" for k, v in JSON.items()),
}


def _pictures(folder: Path, files: list[str]) -> None:
    for value, name in enumerate(files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), 10 * value, np.uint8)).save(folder / name)


def _open(folder: Path, split: str = "train", **fields: Any) -> Any:
    return open_source(DataConfig(name="image_folder", path=str(folder), multi_label=True, **fields), split, 1)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_says_the_same(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(FORMS[name])
    told = read_label_file(tmp_path / name)
    assert (told.files, told.classes) == (FILES, ["cat", "dog", "old"])
    np.testing.assert_array_equal(told.multi_hot([0, 1, 2], told.classes), TRUTH)


def test_a_folder_with_splits_and_one_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for split in ("train", "validation"):
        _pictures(tmp_path / "a" / split, FILES)
        (tmp_path / "a" / split / "labels.csv").write_text(FORMS["labels.csv"])
    source = _open(tmp_path / "a", "val")
    assert source.class_names == ("cat", "dog", "old")
    np.testing.assert_array_equal(source.labels, TRUTH)
    assert source.name.endswith("validation")
    # one file for both splits, the names without their suffix, and one picture that it does not name
    for split in ("train", "val"):
        _pictures(tmp_path / "b" / split, [f"{split}{k}.png" for k in range(4)])
    rows = [f"{split}{k},{k % 2},1\n" for split in ("train", "val") for k in range(4) if (split, k) != ("val", 3)]
    (tmp_path / "b" / "metadata.csv").write_text("image_id,even,all\n" + "".join(rows))
    assert len(_open(tmp_path / "b")) == 4
    with caplog.at_level(logging.WARNING):
        assert len(_open(tmp_path / "b", "val")) == 3
    assert "1 images of" in caplog.text
    _pictures(tmp_path / "c", [f"{k}.png" for k in range(10)])
    (tmp_path / "c" / "labels.csv").write_text("file,labels\n" + "".join(f"{k}.png,x y{k % 2}\n" for k in range(10)))
    train, held_out = _open(tmp_path / "c"), _open(tmp_path / "c", "val")
    assert (len(train), len(held_out), train.class_names) == (8, 2, ("x", "y0", "y1"))
    assert set(train.files).isdisjoint(held_out.files)
    loader = make_loader(
        held_out, DataConfig(batch_size=3, multi_label=True), image_size=(4, 4), channels=1, train=False
    )
    labels = next(loader)["label"]
    assert (labels.shape, labels.dtype) == ((3, 3), np.int8)
    np.testing.assert_array_equal(labels[2], -1)  # padding
    assert set(np.unique(labels[:2])) == {0, 1}
    loader.close()


def test_what_a_file_of_labels_cannot_say(tmp_path: Path) -> None:
    _pictures(tmp_path, FILES)
    for text, said in (
        (None, "has no file of labels (labels.csv, labels.json"),
        ("file_name,labels\n", "holds no rows"),
        ("file_name,cat,breed\na.png,1,collie\n", "column 'breed' holds 'collie': columns of classes hold 0 or 1"),
        ("file_name,labels\nz.png,cat\n", "1 of 1 files are not there, the first is 'z.png'"),
        ("file_name,labels\na.png,\n", "names no class"),
    ):
        if text is not None:
            (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(DataError) as caught:
            _open(tmp_path)
        assert said in str(caught.value)
    (tmp_path / "labels.csv").write_text("file_name,cat,dog\na.png,1,0\nb.png,0,0\n")
    with pytest.raises(DataError, match="no image of class 'dog'"):
        _open(tmp_path)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "labels.csv").write_text(FORMS["labels.csv"])
    with pytest.raises(DataError, match=r"labels\.csv is read with data\.multi_label=True"):
        open_source(DataConfig(name="image_folder", path=str(tmp_path / "plain")), "train")
    with pytest.raises(DataError, match=r"digits has one label an image; data\.multi_label is for image_folder"):
        open_source(DataConfig(multi_label=True), "train", 1)
    with pytest.raises(DataError, match="has no column 'x'"):
        _open(tmp_path, label_key="x")


def test_hugging_face_lists(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()

    def write(name: str, labels: list[Any], feature: Any) -> Any:
        features = datasets.Features({"image": datasets.Image(), "labels": feature})
        pictures = [Image.fromarray(np.zeros((4, 4), np.uint8))] * len(labels)
        rows = datasets.Dataset.from_dict({"image": pictures, "labels": labels}, features=features)
        datasets.DatasetDict(train=rows, dev=rows.select(range(2))).save_to_disk(str(tmp_path / name))
        data = DataConfig(name="hf_dataset", path=str(tmp_path / name), multi_label=True)
        return open_source(data, "train", 1), open_source(data, "val", 1)

    numbers, words = [[0, 2], [], [1, 2]], [["cat", "old"], [], ["dog", "old"]]
    for name, labels, feature, classes in (
        ("named", numbers, datasets.Sequence(datasets.ClassLabel(names=["cat", "dog", "old"])), ("cat", "dog", "old")),
        ("numbers", numbers, datasets.Sequence(datasets.Value("int64")), ("0", "1", "2")),
        ("words", words, datasets.Sequence(datasets.Value("string")), ("cat", "dog", "old")),
        ("hot", TRUTH, datasets.Sequence(datasets.Value("int64")), ("0", "1", "2")),
    ):
        train, val = write(name, labels, feature)
        assert train.class_names == val.class_names == classes
        np.testing.assert_array_equal(train.labels, TRUTH)
        np.testing.assert_array_equal(val.labels, TRUTH[:2])
    with pytest.raises(DataError, match="may hold classes' numbers or a 0 or 1 for each class"):
        write("unclear", [[0, 1], [1, 0]], datasets.Sequence(datasets.Value("int64")))
    with pytest.raises(DataError, match=r"of several labels an image: data\.multi_label=True"):
        open_source(DataConfig(name="hf_dataset", path=str(tmp_path / "named")), "train", 1)
