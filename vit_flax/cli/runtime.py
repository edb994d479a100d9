"""How a command that computes begins: its process keeps freed memory, and XLA keeps what it compiled for the next."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import warnings
from pathlib import Path

from vit_flax.host_memory import keep_host_memory


def prepare() -> None:
    """Sets up this process; call it before JAX is imported. A process that has it already is somebody else's."""
    if "jax" in sys.modules:
        return
    folder = cache_folder()
    if folder is not None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        warnings.filterwarnings("ignore", message=".*persistent compilation cache")  # a full disk: compiled again
    keep_host_memory()  # imports JAX, which reads its environment then


def cache_folder() -> Path | None:
    """Returns the folder for compiled programs; None where the environment has one, wants none, or none can be made."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or os.environ.get("VIT_FLAX_NO_CACHE", "0") != "0":
        return None
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "vit_flax" / "xla" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}"
        probe.touch()  # os.access says yes to root on a read-only file system
        probe.unlink()
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    return folder


def _processor() -> str:
    """Returns letters for this processor: a home may be shared, and code for a newer one crashes on an older one."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        told = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        told = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {told}".encode()).hexdigest()[:12]
