"""Logging of a run: a progress line, JSON lines, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
_FLUSH_SECONDS = 20.0


class RunLog:
    """Logs events of steps; what an interrupted run logged beyond step `start` is dropped.

    Only the first process of a run writes: the others make one with `folder=None`.
    """

    def __init__(
        self, folder: Path | None, start: int, total: int, steps_per_epoch: int | None = None, quiet: bool = False
    ) -> None:
        self._total, self._epoch, self._quiet = total, steps_per_epoch, quiet
        self._began, self._start = time.monotonic(), start
        self._file: Any = None
        self._board: Any = None
        if folder is None:
            return
        path = folder / LOG
        if path.exists():
            truncate(path, start)
        self._file = path.open("a", encoding="utf-8")
        try:
            self._board = Board(folder / "tensorboard", start)
        except ImportError:
            self.say("TensorBoard files are not written: pip install 'vit-linen[train]'")

    def restart_clock(self, step: int) -> None:
        """Starts the ETA's clock at this step: the first one compiled."""
        self._began, self._start = time.monotonic(), step

    def write(self, step: int, kind: str, values: Mapping[str, object]) -> None:
        """Logs a record of a kind ('train', 'eval' ...), its scalars to TensorBoard as well."""
        if self._file is None:
            return
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float):
                    self._board.write(f"{kind}/{name}", value, step)

    def progress(self, step: int, values: Mapping[str, object]) -> None:
        """Shows the progress line."""
        if self._file is None or self._quiet:
            return
        parts = [f"step {step}/{self._total}", f"loss {values['loss']:.4f}", f"lr {values['learning_rate']:.2e}"]
        if self._epoch:
            epoch, epochs = (math.ceil(count / self._epoch) for count in (step, self._total))
            parts.insert(0, f"epoch {epoch}/{epochs}")
        if values.get("images_per_second") is not None:
            parts.append(f"{values['images_per_second']:.1f} images/s")
        if values.get("mfu") is not None:
            parts.append(f"MFU {values['mfu']:.1%}")
        if step > self._start:
            left = (time.monotonic() - self._began) / (step - self._start) * (self._total - step)
            parts.append(f"ETA {format_seconds(left)}")
        line = "  ".join(parts)
        end = "" if sys.stderr.isatty() and step < self._total else "\n"
        print(f"{_clear()}{line}", end=end, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Prints a line of its own."""
        if self._file is not None and not self._quiet:
            print(f"{_clear()}{text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def own_lines(self) -> Iterator[None]:
        """Clears the progress line before warnings and log messages."""

        def clear(*_: Any) -> bool:
            if sys.stderr is not None:
                print(_clear(), end="", file=sys.stderr, flush=True)
            return True

        def show(*arguments: Any, **named: Any) -> None:
            clear()
            shown(*arguments, **named)

        handlers = [handler for handler in (*logging.getLogger().handlers, logging.lastResort) if handler is not None]
        shown, warnings.showwarning = warnings.showwarning, show
        for handler in handlers:
            handler.addFilter(clear)
        try:
            yield
        finally:
            warnings.showwarning = shown
            for handler in handlers:
                handler.removeFilter(clear)

    def close(self) -> None:
        """Closes the files."""
        try:
            if self._file is not None:
                self._file.close()
        finally:
            if self._board is not None:
                self._board.close()


def _clear() -> str:
    """Returns the escape sequence that clears a terminal's line; nothing where there is no terminal."""
    return "\r\033[K" if sys.stderr.isatty() else ""


class Board:
    """A TensorBoard event file, written synchronously.

    tensorboardX's own SummaryWriter has a thread for it, which a full disk ends unseen: the run would wait for it for
    ever.
    """

    def __init__(self, folder: Path, start: int) -> None:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        folder.mkdir(exist_ok=True)
        self._events, self._flushed = EventsWriter(str(folder / "events")), time.monotonic()
        if start:  # hides events of later steps, which an interrupted run wrote
            self._events.write_event(Event(step=start + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, name: str, value: float, step: int) -> None:
        """Writes a scalar."""
        from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboardX.summary import scalar

        self._events.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._events.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the file."""
        self._events.close()


def truncate(path: Path, step: int) -> None:
    """Drops records of later steps than `step`, and an unfinished line."""
    kept = [line for line in path.read_text("utf-8").splitlines(keepends=True) if _is_kept(line, step)]
    beside = path.with_name(path.name + ".tmp")
    beside.write_text("".join(kept), "utf-8")
    beside.replace(path)


def _is_kept(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False


def read_log(path: Path) -> list[dict[str, Any]]:
    """Returns the records of a log."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def format_seconds(seconds: float) -> str:
    """Returns a duration as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
