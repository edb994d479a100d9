"""Checkpoints: Orbax writes them asynchronously, checksums seal them, and only complete ones are restored.

A checkpoint is a folder named by its step: `state/` is Orbax's, `run.json` tells what else the run was at, and
`manifest.json`, written last, has the size and SHA-256 of every other file. A folder without it is no checkpoint; one
whose files differ from it is refused, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

logger = logging.getLogger(__name__)
MANIFEST = "manifest.json"
RUN = "run.json"
STATE = "state"
DAMAGED = ".damaged"
_CHUNK = 1 << 22  # bytes


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message says which and why."""


class Checkpoints:
    """The checkpoints of one run.

    Every process of a run makes one, on a folder that all of them see, and calls the same methods.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 3) -> None:
        import orbax.checkpoint as ocp

        if not os.environ.get("VIT_FLAX_DEBUG"):
            logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs every save, and what it raises
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._ocp = ocp
        self._writer = ocp.AsyncCheckpointer(ocp.StandardCheckpointHandler())
        self._sealing: threading.Thread | None = None
        self._failure: tuple[int, BaseException] | None = None
        if jax.process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, step: int) -> Path:
        """Returns the folder of a step's checkpoint."""
        return self.folder / f"{step:08d}"

    def steps(self) -> list[int]:
        """Returns the steps of the sealed checkpoints in ascending order."""
        if not self.folder.is_dir():
            return []
        names = [path.name for path in self.folder.iterdir() if (path / MANIFEST).is_file()]
        return sorted(int(name) for name in names if re.fullmatch(r"\d+", name))

    def save(self, step: int, state: PyTree, run: Mapping[str, object]) -> None:
        """Starts an asynchronous save; the state may be donated as soon as this returns.

        Args:
            step: its number.
            state: a tree of arrays, on any devices.
            run: JSON types that are read back before the state is: the config, positions, scores.

        Raises:
            CheckpointError: this one or the one before it could not be written.
        """
        self.wait()
        folder = self.path(step)
        if jax.process_index() == 0:
            shutil.rmtree(folder, ignore_errors=True)  # an unfinished or damaged checkpoint
        barrier(f"checkpoint {step}")
        if jax.default_backend() == "cpu":
            # there a host copy is the device's own memory, which the next step is given
            state = jax.block_until_ready(jax.tree.map(jnp.copy, state))
        try:
            if jax.process_index() == 0:
                folder.mkdir(parents=True, exist_ok=True)
                _write_json(folder / RUN, {"step": step, **run})
            self._writer.save(folder / STATE, args=self._ocp.args.StandardSave(_flat(state)))
        except Exception as error:
            self._failure = (step, error)
            self._raise_failure()
        self._sealing = threading.Thread(target=self._seal, args=(step,), name=f"seal-{step}")
        self._sealing.start()

    def _seal(self, step: int) -> None:
        try:
            self._writer.wait_until_finished()
            if jax.process_index() == 0:
                _write_json(self.path(step) / MANIFEST, _digests(self.path(step)))
                for old in self.steps()[: -self.keep]:
                    (self.path(old) / MANIFEST).unlink()  # without its seal it is no checkpoint any more
                    shutil.rmtree(self.path(old), ignore_errors=True)
        except BaseException as error:  # raised by the next call, in the thread that can stop the run
            self._failure = (step, error)

    def wait(self) -> None:
        """Blocks until the last save is committed to disk.

        Raises:
            CheckpointError: it could not be written; what was written of it is removed.
        """
        if self._sealing is not None:
            self._sealing.join()
            self._sealing = None
        barrier("sealed")
        if self._failure is not None:
            self._raise_failure()

    def check(self) -> None:
        """Raises CheckpointError when an asynchronous save has failed already."""
        if self._failure is not None:
            self.wait()

    def _raise_failure(self) -> None:
        assert self._failure is not None
        (step, error), self._failure = self._failure, None
        if jax.process_index() == 0:
            shutil.rmtree(self.path(step), ignore_errors=True)
        raise CheckpointError(f"the checkpoint of step {step} could not be written to {self.folder}: "
                              f"{_reason(error)}; {self.last_good()}") from error  # fmt: skip

    def last_good(self) -> str:
        """Describes the newest sealed checkpoint, for messages."""
        steps = self.steps()
        return f"the last good checkpoint is {self.path(steps[-1])}" if steps else "there is no checkpoint before it"

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """Returns step and `run` of the newest intact checkpoint, or None when there is none.

        Others are named in the log, and put aside with the suffix .damaged.
        """
        found = -1
        if jax.process_index() == 0:
            for step in reversed(self.steps()):
                fault = find_fault(self.path(step))
                if fault is None:
                    found = step
                    break
                logger.error("checkpoint %s is damaged and not used: %s", self.path(step), fault)
                aside = self.path(step).with_suffix(DAMAGED)
                shutil.rmtree(aside, ignore_errors=True)
                self.path(step).rename(aside)
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            found = int(multihost_utils.broadcast_one_to_all(jnp.asarray(found)))
        return None if found < 0 else (found, json.loads((self.path(found) / RUN).read_text("utf-8")))

    def restore(self, step: int, like: PyTree) -> PyTree:
        """Returns the state of a checkpoint.

        Args:
            step: a step of `newest`.
            like: the tree to fill: arrays or jax.ShapeDtypeStruct whose shardings say where the state goes, on however
                many devices.

        Raises:
            CheckpointError: it holds other arrays than `like`.
        """
        flat = _flat(like)
        try:
            read = self._writer.restore(self.path(step) / STATE, args=self._ocp.args.StandardRestore(flat))
        except Exception as error:
            raise CheckpointError(f"checkpoint {self.path(step)} cannot be read: {_reason(error)}") from error
        return jax.tree.unflatten(jax.tree.structure(like), [read[name] for name in flat])

    def close(self) -> None:
        """Waits for pending saves and stops the writer's threads."""
        self.wait()
        self._writer.close()


def find_fault(folder: Path) -> str | None:
    """Returns the first difference of a checkpoint's files from its manifest, or None."""
    try:
        expected = json.loads((folder / MANIFEST).read_text("utf-8"))
        if not isinstance(expected, dict) or not expected:
            return f"{MANIFEST} is empty"
        for name, (size, digest) in expected.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if _digest(path) != digest:
                return f"{name} has other contents than were written"
    except (ValueError, TypeError, OSError) as error:
        return f"{MANIFEST} cannot be read: {_reason(error)}"
    return None


def _digests(folder: Path) -> dict[str, tuple[int, str]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): (path.stat().st_size, _digest(path)) for path in files}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _write_json(path: Path, value: Any) -> None:
    """Writes a file atomically."""
    beside = path.with_name(path.name + ".tmp")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _flat(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves by name, so that a checkpoint does not depend on the classes of the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _reason(error: BaseException) -> str:
    text = " ".join(str(error).split())
    known = ("No space left on device", "File too large", "Disk quota exceeded", "Read-only file system")
    return next((words for words in known if words in text), text[:300] or type(error).__name__)


def barrier(name: str) -> None:
    """Blocks until every process has reached this barrier."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
