"""XLA's compiler for GPUs, where JAX's CUDA plugin is installed for it alone (pip install 'vit-linen[gpu-plan]').

JAX takes the plugin for a GPU's, looks for a driver and CUDA's libraries, and complains at every start: our commands
hide it (`vit_flax.cli.startup`), and `vit-flax plan` asks it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator

_PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
_EXTENSIONS = ("jax_cuda12_plugin", "jax_cuda13_plugin")  # which JAX imports as it starts


def show() -> bool:
    """Makes JAX know the plugin, for compiling alone; returns whether there is one."""
    import jax

    with quiet():
        jax.config.update("jax_platforms", "cpu")  # or the plugin asks for CUDA's libraries
        jax.devices()  # which discovers plugins, once
        for name in _PLUGINS:
            module = sys.modules.get(name)
            if module is None or getattr(module, "__file__", None):
                continue
            del sys.modules[name]  # a placeholder: JAX has not loaded the plugin
            for extension in _EXTENSIONS:
                if sys.modules.get(extension) is None:
                    sys.modules.pop(extension, None)
            with contextlib.suppress(ImportError):
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
