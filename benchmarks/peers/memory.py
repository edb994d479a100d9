"""The memory bandwidth, by x + 3 y in place on two arrays of 256 MB, far larger than any cache.

Not a model: the note `bytes` is what a call reads and writes.
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.peers import Job, Prepared

SETTINGS = "float32, three times 256 MB a call, the result takes the first operand's place"
COUNT = 2**26
FLOPS = 2.0 * COUNT


def prepare(job: Job) -> Prepared:
    """Compiles one call."""
    import jax
    import jax.numpy as jnp

    started = time.perf_counter()
    add = jax.jit(lambda x, y: x + 3 * y, donate_argnums=0)
    held = [jnp.zeros(COUNT, jnp.float32)]
    y = jnp.full(COUNT, 1e-6, jnp.float32)

    def run() -> None:
        held[0] = add(held[0], y).block_until_ready()

    run()
    return Prepared(run, np.zeros(0, np.float32), time.perf_counter() - started, {"bytes": 3 * 4 * COUNT})
