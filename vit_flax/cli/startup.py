"""Set-up before JAX is imported: absent accelerators are hidden, compiled programs cached, host memory kept."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import types
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from vit_flax.host_memory import keep_host_memory

# Device files of NVIDIA's GPUs (a machine's, Windows' under Linux, Jetson's) and of TPUs.
_GPUS = ("nvidia*", "dxg", "nvhost*", "nvgpu*", "nvmap")
_TPUS = ("accel*", "vfio/[0-9]*")
_TPU_CHIPS = ("0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076")  # PCI device ids of vendor 0x1ae0


def hide_absent_accelerators(devices: Path = Path("/dev"), bus: Path = Path("/sys/bus/pci/devices")) -> None:
    """Keeps JAX from loading libtpu or a CUDA plugin where this machine has no such device.

    Without a device libtpu and the CUDA plugin write warnings and tracebacks to standard error, from C++, and JAX loads
    the plugin whatever JAX_PLATFORMS says. The plugin stays where JAX_PLATFORMS names a GPU, libtpu where JAX_PLATFORMS
    or JAX_FORCE_TPU_INIT is set, and both where JAX is imported already. `vit_flax.gpu_compiler.show` restores the
    plugin.
    """
    if "jax" in sys.modules or not sys.platform.startswith("linux"):
        return
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if not _is_there(devices, _GPUS) and not {"cuda", "gpu"} & set(platforms.split(",")):
        _hide(["jax_cuda12_plugin", "jax_cuda13_plugin"])
        for plugin in ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"):
            module = types.ModuleType(plugin)
            module.initialize = lambda: None  # pyright: ignore[reportAttributeAccessIssue]
            sys.modules.setdefault(plugin, module)
    if platforms or os.environ.get("JAX_FORCE_TPU_INIT"):
        return
    if not _is_there(devices, _TPUS) and not _has_tpu_chip(bus):
        _hide(["libtpu"])
        os.environ.pop("TPU_LIBRARY_PATH", None)  # JAX sets it, and child processes inherit it


def _is_there(devices: Path, patterns: Iterable[str]) -> bool:
    return any(any(devices.glob(pattern)) for pattern in patterns)


def _has_tpu_chip(bus: Path) -> bool:
    for vendor in bus.glob("*/vendor"):
        try:
            if vendor.read_text().strip() == "0x1ae0" and (vendor.parent / "device").read_text().strip() in _TPU_CHIPS:
                return True
        except OSError:
            continue
    return False


def _hide(modules: Iterable[str]) -> None:
    """Makes imports of these modules fail as if they were not installed."""
    for name in modules:
        if name not in sys.modules and find_spec(name) is not None:
            sys.modules[name] = None  # pyright: ignore[reportArgumentType]


def set_up_process() -> None:
    """Sets up this process before JAX is imported; one that has imported it is left as it is."""
    if "jax" in sys.modules:
        return
    folder = cache_folder()
    if folder is not None:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
        warnings.filterwarnings("ignore", message=".*persistent compilation cache")  # a full disk: compiled again
    keep_host_memory()  # imports JAX, which reads its environment then


def cache_folder() -> Path | None:
    """Returns the compilation cache's folder; None where the environment sets or forbids one, or none can be made."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or os.environ.get("VIT_FLAX_NO_CACHE", "0") != "0":
        return None
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = root / "vit_flax" / "xla" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}"
        probe.touch()  # os.access succeeds for root on a read-only file system
        probe.unlink()
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    return folder


def _processor() -> str:
    """Returns a digest of this CPU's features: a home may be shared, and code for a newer CPU crashes on an older."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        told = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        told = platform.processor()
    return hashlib.sha256(f"{platform.machine()} {told}".encode()).hexdigest()[:12]
