"""A progress line on stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Self

QUIET_SECONDS = 1.0  # shorter work has no line
EVERY = {True: 0.2, False: 30.0}  # seconds between updates, on a terminal and elsewhere
WIDTH = 24


class Progress:
    """Shows a bar, images per second and the ETA; in place on a terminal, as occasional lines elsewhere."""

    def __init__(self, total: int, what: str = "images") -> None:
        self._total, self._what, self._done = total, what, 0
        self._began = self._told = time.monotonic()
        self._terminal, self._shown = sys.stderr.isatty(), False

    def __enter__(self) -> Self:
        """Returns itself; the clock runs since the constructor."""
        return self

    def advance(self, count: int) -> None:
        """Adds `count` to the work done, and shows the line where it is due."""
        self._done += count
        now = time.monotonic()
        if now - self._began < QUIET_SECONDS or now - self._told < EVERY[self._terminal]:
            return
        self._told = now
        rate = self._done / (now - self._began)
        minutes, seconds = divmod(round(max(0, self._total - self._done) / rate), 60)
        full = round(WIDTH * min(1.0, self._done / max(1, self._total)))
        bar = f"[{'#' * full}{'.' * (WIDTH - full)}] " if self._terminal else "... "
        line = f"{bar}{self._done:,}/{self._total:,} {self._what}  {rate:.1f}/s  {minutes}:{seconds:02d} left"
        print(f"\r\x1b[2K{line}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()
        self._shown = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Clears the line."""
        if self._shown and self._terminal:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
