"""Every source on small files of its own kind, and one clear line for every kind of bad input."""

import gzip
import io
import json
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vit_flax.preprocessing.decode import BadImageError
from vit_flax.train.config import DataConfig
from vit_flax.train.data import DataError, find_splits, open_source
from vit_flax.train.data.array_record import example_class
from vit_flax.train.data.checks import check_images, check_sample

CLASSES = ("ant", "bee", "cat")


def _image(value: int, size: tuple[int, int] = (5, 4)) -> np.ndarray:
    return np.full((*size, 3), value, np.uint8)


def _png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_image(value)).save(file, "PNG")
    return file.getvalue()


def _open(name: str, path: Path | None, split: str = "train", channels: int = 3, **fields: Any) -> Any:
    num_classes = fields.pop("num_classes", None)
    return open_source(DataConfig(name=name, path=str(path) if path else None, **fields), split, channels, num_classes)


def _refused(name: str, path: Path | None, split: str = "train", **fields: Any) -> str:
    with pytest.raises(DataError) as caught:
        _open(name, path, split, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_digits_are_split_by_class_and_always_alike() -> None:
    train, test = _open("digits", None, "train"), _open("digits", None, "test")
    assert (len(train), len(test)) == (1438, 359)
    assert np.bincount(test.labels).min() >= 34
    example = test[3]
    assert example["image"].shape == (8, 8, 1)
    assert example["image"].max() <= 240
    assert example["name"] == "digits/test[3]"
    assert len(_open("digits", None, "train", val_share=0.5)) == pytest.approx(899, abs=5)
    together = np.concatenate([train.images, test.images]).reshape(1797, -1)
    from sklearn.datasets import load_digits

    original: Any = load_digits()
    np.testing.assert_array_equal(sorted(map(tuple, together // 15)), sorted(map(tuple, original.data.astype(int))))


def _write_idx(path: Path, array: np.ndarray) -> None:
    content = bytes((0, 0, 8, array.ndim)) + np.asarray(array.shape, ">u4").tobytes() + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    images = np.arange(20 * 28 * 28).astype(np.uint8).reshape(20, 28, 28)
    labels = np.arange(20).astype(np.uint8) % 10
    _write_idx(tmp_path / "train-images-idx3-ubyte.gz", images)
    _write_idx(tmp_path / "train-labels-idx1-ubyte", labels)
    _write_idx(tmp_path / "t10k-images-idx3-ubyte", images[:10])
    _write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", labels[:10])
    return tmp_path


def test_fashion_mnist(fashion: Path) -> None:
    train, test = _open("fashion_mnist", fashion), _open("fashion_mnist", fashion, "test")
    assert (len(train), len(test), train.image_shape) == (20, 10, (28, 28, 1))
    assert train[13]["label"] == 3
    assert train[1]["image"].ravel()[0] == 784 % 256
    assert train.class_names[9] == "Ankle boot"


def test_fashion_mnist_refuses(fashion: Path) -> None:
    labels = fashion / "train-labels-idx1-ubyte"
    assert "no such folder" in _refused("fashion_mnist", fashion / "nowhere")
    assert "needs a folder: fashion_mnist:PATH" in _refused("fashion_mnist", None)
    assert "is a file" in _refused("fashion_mnist", labels)
    assert "no split 'validation'" in _refused("fashion_mnist", fashion, "validation")
    whole = labels.read_bytes()
    for broken, said in (
        (whole[:-3], "is cut off: its header says 20 bytes"),
        (whole + b"0", "goes on behind its end"),
        (whole[:6], "not an IDX file"),
        (b"PK" + whole[2:], "not an IDX file"),
        (whole[:4] + b"\xff" * 4 + whole[8:], "is cut off"),
        (whole[:-1] + b"\x0a", "fashion_mnist/train[19]: label 10 is out of range, there are 10 classes"),
        (whole[:-1] + b"\x08", None),
        (whole.replace(b"\x09", b"\x08"), "no image of class 'Ankle boot'"),
        (whole[:4] + b"\0\0\0\x13" + whole[8:-1], "19 labels, but there are 20 images"),
    ):
        labels.write_bytes(broken)
        if said is None:
            _open("fashion_mnist", fashion)
        else:
            assert said in _refused("fashion_mnist", fashion)
    labels.write_bytes(whole)
    images = fashion / "train-images-idx3-ubyte.gz"
    images.write_bytes(images.read_bytes()[:-40])
    assert "train-images-idx3-ubyte.gz: damaged" in _refused("fashion_mnist", fashion)
    images.unlink()
    assert "has neither train-images-idx3-ubyte nor" in _refused("fashion_mnist", fashion)


def _fill(folder: Path, count: int = 5) -> None:
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(_image(10 * label + index)).save(folder / name / f"{index}.{('png', 'bmp')[index % 2]}")


def test_an_image_folder_with_and_without_splits(tmp_path: Path) -> None:
    _fill(tmp_path / "a")
    train, val = _open("image_folder", tmp_path / "a"), _open("image_folder", tmp_path / "a", "val")
    assert (len(train), len(val), train.class_names) == (12, 3, CLASSES)
    assert set(train.files).isdisjoint(val.files)
    example = train[0]
    assert example["image"].shape == (5, 4, 3)
    assert example["name"].startswith("ant/")
    assert _open("image_folder", tmp_path / "a", channels=1)[0]["image"].shape == (5, 4, 1)
    _fill(tmp_path / "b" / "train")
    _fill(tmp_path / "b" / "val", 2)
    (tmp_path / "b" / "val" / "cat" / "0.png").unlink()
    assert [len(_open("image_folder", tmp_path / "b", split)) for split in ("train", "val", "test")] == [15, 5, 5]
    assert pickle.loads(pickle.dumps(train))[0]["label"] == 0


@pytest.mark.parametrize(
    ("folders", "splits", "opened"),
    [
        (("train", "validation"), {"train", "val"}, ("validation", "validation")),
        (("train", "valid", "test"), {"train", "val", "test"}, ("valid", "test")),
        (("Training", "Dev", "Testing"), {"train", "val", "test"}, ("Dev", "Testing")),
        (("train", "test"), {"train", "test"}, ("test", "test")),
    ],
)
def test_splits_by_their_usual_names(
    folders: tuple[str, ...], splits: set[str], opened: tuple[str, str], tmp_path: Path
) -> None:
    for name in folders:
        _fill(tmp_path / "photos" / name, 2)
        _write_tar(tmp_path / "tars" / f"x-{name.lower()}-0.tar", {"a.png": _png(0), "a.cls": b"0"})
    for name, path in (("image_folder", tmp_path / "photos"), ("webdataset", tmp_path / "tars")):
        assert set(find_splits(DataConfig(name=name, path=str(path)))) == splits
        for split, expected in zip(("val", "test"), opened, strict=True):
            found = _open(name, path, split).name
            assert found.lower().endswith(f"/{expected.lower()}"), found  # told by its own name


def test_headers_tell_what_cannot_be_read(tmp_path: Path) -> None:
    _fill(tmp_path)
    source = _open("image_folder", tmp_path)
    check_sample(source)
    check_images(source, 0.0)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "ant" / "1.png")
    (tmp_path / "bee" / "1.png").write_bytes(b"nothing")
    for index in range(5):
        (tmp_path / "cat" / f"{index}.bmp").unlink(missing_ok=True)
    source = _open("image_folder", tmp_path, val_share=0.0)
    with pytest.raises(DataError, match=r"cannot be read, more than data\.max_bad_share 0\.01 allows; the first: "):
        check_images(source, 0.01)
    check_images(source, 0.9)
    check_sample(source)
    for file in tmp_path.rglob("*.*"):
        Image.fromarray(np.zeros((4, 4), np.uint16)).save(file.with_suffix(".png"))
        if file.suffix != ".png":
            file.unlink()
    with pytest.raises(DataError, match=r"none of \d+ images tried can be read; the first: ant/.*more than 8 bits"):
        check_sample(_open("image_folder", tmp_path))


def test_an_image_folder_refuses(tmp_path: Path) -> None:
    assert "no such folder" in _refused("image_folder", tmp_path / "nowhere")
    assert "there must be one for each class" in _refused("image_folder", tmp_path)
    _fill(tmp_path / "a")
    (tmp_path / "a" / "dog").mkdir()
    assert "no image of class 'dog'" in _refused("image_folder", tmp_path / "a")
    _fill(tmp_path / "b" / "train")
    assert "has no split 'val' (nor validation, valid, dev, eval), only 'train'" in _refused(
        "image_folder", tmp_path / "b", "val"
    )
    _fill(tmp_path / "b" / "val")
    (tmp_path / "b" / "val" / "dog").mkdir()
    assert "class 'dog' is not among the classes" in _refused("image_folder", tmp_path / "b", "val")
    assert "has 3 classes, the model only 2" in _refused("image_folder", tmp_path / "b", num_classes=2)
    (tmp_path / "b" / "train" / "ant" / "0.png").write_bytes(b"nothing")
    with pytest.raises(BadImageError, match="not a readable image"):
        _open("image_folder", tmp_path / "b")[0]


def test_a_source_misspelt_or_of_other_channels() -> None:
    assert "did you mean 'fashion_mnist'" in _refused("fashion-mnist", None)
    with pytest.raises(DataError, match="in_chans=4"):
        _open("digits", None, channels=4)


def test_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    pictures = [Image.fromarray(_image(value)) for value in range(9)]
    rows = datasets.Dataset.from_dict({"img": pictures, "label": [0, 1, 2] * 3}, features=features)
    datasets.DatasetDict(train=rows, validation=rows.select(range(4))).save_to_disk(str(tmp_path / "dict"))
    rows.save_to_disk(str(tmp_path / "one"))
    for name in ("train", "test"):
        rows.to_parquet(str(tmp_path / "parquet" / f"{name}-00000-of-00001.parquet"))
    datasets.config.HF_DATASETS_CACHE = tmp_path / "cache"
    for name, sizes in (("dict", (9, 4)), ("one", (6, 3)), ("parquet", (9, 9))):
        parts = [_open("hf_dataset", tmp_path / name, split) for split in ("train", "val")]
        assert tuple(map(len, parts)) == sizes
        assert parts[0].class_names == CLASSES
        example = pickle.loads(pickle.dumps(parts[0]))[4]
        assert example["image"].shape == (5, 4, 3)
        assert example["image"].flat[0] % 3 == example["label"]
    assert "no column 'x' (image_key), only 'img', 'label'" in _refused("hf_dataset", tmp_path / "one", image_key="x")
    arrays = datasets.Dataset.from_dict({"pixels": [_image(v).tolist() for v in range(3)], "label": [0, 1, 7]})
    arrays.save_to_disk(str(tmp_path / "arrays"))
    assert "Set image_key: it has 'pixels', 'label'" in _refused("hf_dataset", tmp_path / "arrays")
    said = _refused("hf_dataset", tmp_path / "arrays", image_key="pixels", num_classes=4)
    assert "[2]: label 7 is out of range, there are 4 classes" in said
    opened = _open("hf_dataset", tmp_path / "arrays", image_key="pixels", num_classes=8, split="val", val_share=0.0)
    assert len(opened) == 0


def test_hugging_face_datasets_refuse(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    assert "has neither a dataset of save_to_disk" in _refused("hf_dataset", tmp_path)
    (tmp_path / "state.json").write_text("{")
    assert "cannot be read as a dataset" in _refused("hf_dataset", tmp_path)


def _record(image: bytes, label: int) -> bytes:
    example = example_class()()
    example.features.feature["image"].bytes_list.value.append(image)
    example.features.feature["label"].int64_list.value.append(label)
    return example.SerializeToString()


def _write_records(path: Path, records: list[bytes]) -> None:
    module = pytest.importorskip("array_record.python.array_record_module")
    writer = module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def test_array_records(tmp_path: Path) -> None:
    _write_records(tmp_path / "bugs-train.array_record-00000-of-00001", [_record(_png(v), v % 3) for v in range(7)])
    assert "How many" in _refused("array_record", tmp_path).replace("how", "How")
    features = {"featuresDict": {"features": {"label": {"classLabel": {"numClasses": "3"}}}}}
    (tmp_path / "features.json").write_text(json.dumps(features))
    assert _open("array_record", tmp_path).class_names == ("0", "1", "2")
    (tmp_path / "label.labels.txt").write_text("\n".join(CLASSES))
    source = pickle.loads(pickle.dumps(_open("array_record", tmp_path)))
    assert (len(source), source.class_names) == (7, CLASSES)
    example = source[5]
    assert (int(example["image"].flat[0]), example["label"]) == (5, 2)
    assert "has no split 'test' (nor testing), only 'train'" in _refused("array_record", tmp_path, "test")
    _write_records(tmp_path / "bugs-test.array_record-00000-of-00001", [_record(b"", 1), _record(_png(1), 3), b"\xff"])
    bad = _open("array_record", tmp_path, "test")
    with pytest.raises(BadImageError, match="not a readable image"):
        bad[0]
    for index, said in ((1, "label 3 is out of range"), (2, "the record is not a tf.train.Example")):
        with pytest.raises(DataError, match=said):
            bad[index]
    with pytest.raises(DataError, match="has no feature 'photo', only 'image', 'label'"):
        _open("array_record", tmp_path, image_key="photo")[0]


def test_array_records_refuse(tmp_path: Path) -> None:
    (tmp_path / "a-train.tfrecord-00000-of-00001").touch()
    assert "file_format='array_record'" in _refused("array_record", tmp_path)
    (tmp_path / "a-train.array_record-00000-of-00001").write_bytes(b"nothing at all")
    assert "cannot be read" in _refused("array_record", tmp_path, num_classes=3)


def _write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def test_webdataset(tmp_path: Path) -> None:
    first = {f"a/{v:03}.{suffix}": _png(v) if suffix == "png" else b"%d\n" % (v % 3)
             for v in range(6) for suffix in ("png", "cls")}  # fmt: skip
    second = {f"{v:03}.{suffix}": _png(v) if suffix == "png" else json.dumps({"label": v % 3}).encode()
              for v in range(6, 9) for suffix in ("json", "png")}  # fmt: skip
    _write_tar(tmp_path / "x-train-000.tar", first)
    _write_tar(tmp_path / "x-train-001.tar", second)
    _write_tar(tmp_path / "x-val-000.tar", first)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    source = pickle.loads(pickle.dumps(_open("webdataset", tmp_path)))
    assert (len(source), source.class_names) == (9, CLASSES)
    for index in range(9):
        assert source[index]["image"].flat[0] == index
        assert source[index]["label"] == index % 3
    assert source.describe(7).endswith("x-train-001.tar:007")
    assert len(_open("webdataset", tmp_path, "test")) == 6
    _write_tar(tmp_path / "whole" / "0.tar", first)
    assert [len(_open("webdataset", tmp_path / "whole", split)) for split in ("train", "val")] == [3, 3]


def test_webdataset_refuses(tmp_path: Path) -> None:
    assert "has no .tar files" in _refused("webdataset", tmp_path)
    file = tmp_path / "train.tar"
    good = {"a.png": _png(0), "a.cls": b"0"}
    for members, said in (
        ({**good, "b.cls": b"1"}, "train.tar:b: has no image"),
        ({**good, "a.jpg": b""}, "train.tar:a: has several images (png, jpg)"),
        ({**good, "b.png": b""}, "train.tar:b: has no label"),
        ({**good, "b.png": b"", "b.json": b"{"}, "train.tar:b.json: not JSON"),
        ({**good, "b.png": b"", "b.cls": b"cat"}, "train.tar:b: the label must be an integer, got 'cat'"),
        ({**good, "b.png": b"", "b.json": b'{"label": -1}'}, "train.tar:b: label -1 is out of range"),
        ({**good, "b.png": b"", "b.cls": b"2"}, "no image of class '1'"),
        ({}, "holds no images"),
    ):
        _write_tar(file, members)
        assert said in _refused("webdataset", tmp_path)
    _write_tar(file, good)
    file.write_bytes(b"x" + file.read_bytes()[1:])
    assert "not a whole, uncompressed tar file" in _refused("webdataset", tmp_path)
    file.rename(tmp_path / "train.tar.gz")
    assert "compressed ones cannot be read at random" in _refused("webdataset", tmp_path)
