"""The files of another commit of this repository, to race its code against the current one."""

from __future__ import annotations

import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Yields a temporary folder with the files of `commit`.

    Raises:
        ValueError: there is no such commit here.
    """
    told = subprocess.run(
        ["git", "archive", "--format=tar", commit], capture_output=True, cwd=Path(__file__).parent.parent, check=False
    )
    if told.returncode:
        raise ValueError(f"git has no files of {commit!r}: {told.stderr.decode().strip().splitlines()[0]}")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(told.stdout)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)
