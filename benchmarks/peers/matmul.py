"""The matrix product that sets the peak FLOP/s, 3,072 squared. Variants: '' JAX, 'torch'.

Not a model: its FLOPs are SIDE ** 3 * 2 whatever the case is.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.peers import Job, Prepared

SETTINGS = "square product, operands in the case's precision, result in float32 (torch: in the operands')"
SIDE = 3072
FLOPS = 2.0 * SIDE**3


def prepare(job: Job) -> Prepared:
    """Compiles one product."""
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((SIDE, SIDE), np.float32) for _ in range(2))
    started = time.perf_counter()
    run = (_torch if job.variant == "torch" else _jax)(a, b, job.case.precision)
    run()
    return Prepared(run, np.zeros(0, np.float32), time.perf_counter() - started, {})


def _jax(a: np.ndarray, b: np.ndarray, precision: str) -> Any:
    import jax
    import jax.numpy as jnp
    from jax import lax

    x, y = jnp.asarray(a, precision), jnp.asarray(b, precision)
    product = jax.jit(lambda x, y: lax.dot(x, y, preferred_element_type=jnp.float32))
    return lambda: product(x, y).block_until_ready()


def _torch(a: np.ndarray, b: np.ndarray, precision: str) -> Any:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, y = (torch.tensor(v, device=device).to(getattr(torch, precision)) for v in (a, b))

    def run() -> Any:
        z = x @ y
        if device == "cuda":
            torch.cuda.synchronize()
        return z

    return run
