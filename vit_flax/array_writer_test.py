"""Files written row by row: NumPy reads them back, and unfinished ones leave nothing behind."""

from pathlib import Path

import numpy as np
import pytest

from vit_flax.array_writer import ArrayWriter


def _write(target: Path, parts: list[np.ndarray]) -> None:
    with ArrayWriter(target) as writer:
        for part in parts:
            writer.append({"features": part, "layer_2": part[:, :1].astype(np.float64)})
        writer.append({"images": np.asarray(["a.png", "böse.png"])})


def test_files_and_folders_hold_what_was_appended(tmp_path: Path) -> None:
    parts = [np.random.default_rng(n).normal(size=(n, 3, 2)).astype(np.float32) for n in (2, 0, 5)]
    expected = np.concatenate(parts)
    target = tmp_path / "out.npz"
    target.write_bytes(b"what was there before")
    _write(target, parts)
    with np.load(target) as file:
        assert set(file) == {"features", "layer_2", "images"}
        np.testing.assert_array_equal(file["features"], expected)
        np.testing.assert_array_equal(file["layer_2"], expected[:, :1])
        assert file["images"].tolist() == ["a.png", "böse.png"]
        assert file["layer_2"].dtype == np.float64
    (tmp_path / "folder").mkdir()  # an empty one will do
    _write(tmp_path / "folder", parts)
    mapped = np.load(tmp_path / "folder" / "features.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, expected)
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain").stat().st_mode
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "out.npz", "plain"]


@pytest.mark.parametrize("name", ["out.npz", "out"])
def test_what_fails_leaves_what_was_there(name: str, tmp_path: Path) -> None:
    target = tmp_path / name
    if target.suffix:
        target.write_bytes(b"before")

    def write(rows: np.ndarray, error: type[BaseException] | None = None) -> None:
        with ArrayWriter(target) as writer:
            writer.append({"features": np.zeros((4, 2))})
            writer.append({"features": rows})
            if error:
                raise error

    for rows in (np.zeros((1, 3)), np.zeros((1, 2), np.float32)):
        with pytest.raises(ValueError, match="do not fit in one array"):
            write(rows)
    with pytest.raises(KeyboardInterrupt):
        write(np.zeros((1, 2)), KeyboardInterrupt)
    assert [path.name for path in tmp_path.iterdir()] == ([name] if target.suffix else [])
    assert not target.suffix or target.read_bytes() == b"before"


def test_targets_that_cannot_be_written_are_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    (tmp_path / "folder.npz").mkdir()
    for name, told in (
        ("no/out.npz", "its folder does not exist"), ("out.txt", "must end in .npz"), ("full", "is there already"),
        ("folder.npz", "is a folder"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            ArrayWriter(tmp_path / name)
