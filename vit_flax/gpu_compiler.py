"""XLA's GPU compiler, of a JAX CUDA plugin that is installed for compilation alone (pip install 'vit-linen[gpu-plan]').

With the plugin JAX looks for a driver and CUDA's libraries, and logs errors at every start: the commands hide the
plugin (`vit_flax.cli.startup`), and `vit-flax plan` shows it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator

_PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
_EXTENSIONS = ("jax_cuda12_plugin", "jax_cuda13_plugin")  # imported by JAX at its start


def show() -> bool:
    """Registers the plugin with JAX, for compilation alone; returns whether there is one."""
    import jax

    with quiet():
        jax.config.update("jax_platforms", "cpu")  # otherwise the plugin loads CUDA's libraries
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
    """Redirects file descriptor 2 to /dev/null in the context: C++ libraries log missing devices there."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
