"""XLA's compiler for GPUs, where JAX's CUDA plugin is installed for it alone: kept from JAX, and shown to it.

`vit-flax plan` asks that compiler (pip install 'vit-linen[gpu-plan]'). JAX takes the plugin for a GPU's, looks for a
driver and CUDA's libraries, and complains at every start.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

_PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
_EXTENSIONS = ("jax_cuda12_plugin", "jax_cuda13_plugin")  # which JAX imports as it starts


def hide() -> None:
    """Keeps JAX from the plugin; call it before JAX is imported.

    Where there is an NVIDIA driver, or JAX_PLATFORMS names the GPU, nothing is hidden.
    """
    if "jax" in sys.modules or {"cuda", "gpu"} & set(os.environ.get("JAX_PLATFORMS", "").split(",")):
        return
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        for name in (*_PLUGINS, *_EXTENSIONS):
            if not _is_installed(name):
                continue
            stand_in: Any = types.ModuleType(name)
            stand_in.initialize, stand_in.is_hidden = lambda: None, True
            sys.modules[name] = stand_in if name in _PLUGINS else None  # pyright: ignore[reportArgumentType]


def show() -> bool:
    """Makes JAX know the plugin, for compiling alone; returns whether there is one."""
    import jax

    hidden = [name for name in _PLUGINS if getattr(sys.modules.get(name), "is_hidden", False)]
    with quiet():
        jax.config.update("jax_platforms", "cpu")  # or the plugin asks for CUDA's libraries
        jax.devices()  # which looks for plugins, once
        for name in hidden:
            for module in (name, *_EXTENSIONS):
                sys.modules.pop(module, None)
            importlib.import_module(name).initialize()
    return any(name in sys.modules for name in _PLUGINS)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps off the terminal what the compilers' libraries write, past Python, about devices that are not there."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _is_installed(name: str) -> bool:
    try:
        return name not in sys.modules and importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # no plugin of any kind
        return False
