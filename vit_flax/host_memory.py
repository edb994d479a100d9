"""Keeps the memory of XLA:CPU's temporaries between calls."""

from __future__ import annotations

import ctypes
import os
import sys

# glibc's mallopt parameters (malloc.h)
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_NEVER = -1  # as a threshold; the largest int, 2 GiB, would return the memory of a large step after every call
_TOP_PAD_BYTES = 64 * 2**20


def keep_host_memory() -> bool:
    """Makes this process reuse the memory of its last computation on the CPU; returns whether it took effect.

    XLA:CPU allocates all temporaries of a computation in one block on every call and frees it at the end. By default
    glibc maps and unmaps such a block each time, and the kernel has to fill it with zeros: a tenth to a quarter of a
    training step on small models (benchmarks/README.md). Here malloc keeps them, so the process holds its peak memory
    from then on. Asynchronous dispatch on the CPU is turned off, so that this peak is one computation's and not that of
    several: a call dispatched ahead allocates its block before the last has freed its own.

    Call it before JAX initialises its backend: threads keep the arena they started with. It changes nothing on
    accelerators, on other C libraries, or where the environment already tunes malloc (GLIBC_TUNABLES, MALLOC_*).
    """
    tuned = "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ)
    if tuned or not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    # one arena: only the main one grows without limit; no separate mappings; never trimmed
    wishes = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _TOP_PAD_BYTES))
    results = [mallopt(name, value) for name, value in wishes]
    if any(result != 1 for result in results):
        return False
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)
    return True
