"""A run's log is in its files, without the lines of an interrupted run after its checkpoint."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from vit_flax.train.runlog import LOG, RunLog, read_log


def _events(folder: Path) -> list[Any]:
    """Returns what a TensorBoard file holds: length, its checksum, the event and its checksum, again and again."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    (path,) = folder.iterdir()
    data, events = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        events.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return events


def test_lines_and_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / LOG).write_text("".join(json.dumps({"step": step, "kind": "train"}) + "\n" for step in (1, 2, 3)) + "{")
    log = RunLog(tmp_path, 2, 10)
    log.write(3, "train", {"loss": 0.5, "mfu": None})
    log.progress(3, {"loss": 0.5, "learning_rate": 1e-3, "images_per_second": None, "mfu": None})
    log.close()
    assert read_log(tmp_path / LOG)[2:] == [{"step": 3, "kind": "train", "loss": 0.5, "mfu": None}]
    _, purged, number = _events(tmp_path / "tensorboard")
    assert purged.step == 3
    assert purged.session_log.status == purged.session_log.START
    assert (number.step, number.summary.value[0].tag, number.summary.value[0].simple_value) == (3, "train/loss", 0.5)
    assert capsys.readouterr().err.startswith("step 3/10  loss 0.5000  lr 1.00e-03  ETA")


def test_what_cannot_be_written_is_an_error_at_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, 10, quiet=True)
    log._file.close()
    log._file = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
    with pytest.raises(OSError, match="No space left"):
        log.write(1, "train", {"loss": 1.0})
    with pytest.raises(OSError, match="No space left"):  # closing a file writes what is left
        log.close()
