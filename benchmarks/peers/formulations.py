"""Ours with one part in its plain form, to time each formulation.

Variants: the names of `PLAIN`. Where only the backward pass is hand-written, the plain form is the same function,
differentiated by JAX.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

from benchmarks.peers import Job, Prepared, vit_flax

SETTINGS = f"{vit_flax.SETTINGS}; one part in its plain form"


def _fence() -> AbstractContextManager[Any]:
    from vit_flax.models import linear

    return patch.object(linear, "fence", lambda x, there=None: x)


def _linear() -> AbstractContextManager[Any]:
    from vit_flax.models import linear

    return patch.object(linear, "matmul", inspect.unwrap(linear.matmul))


def _attention() -> AbstractContextManager[Any]:
    from vit_flax.models.attention_backends import attention_backend

    return attention_backend("plain")


def _layer_norm() -> AbstractContextManager[Any]:
    from vit_flax.models import norm

    return patch.object(norm, "layer_norm", inspect.unwrap(norm.layer_norm))


def _gelu() -> AbstractContextManager[Any]:
    import jax

    from vit_flax.models import activations

    return patch.dict(activations.ACTIVATIONS, gelu=lambda x: jax.nn.gelu(x, approximate=False))


# part -> a context in which models are traced with its plain form
PLAIN: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "fence": _fence,
    "linear": _linear,
    "attention": _attention,
    "layer_norm": _layer_norm,
    "gelu": _gelu,
}


def prepare(job: Job) -> Prepared:
    """Builds our model with that part plain and compiles it."""
    with PLAIN[job.variant]():
        return vit_flax.prepare(job)
