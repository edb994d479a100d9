"""FLOPs of a model's matrix products, and the peak FLOP/s of a device."""

from __future__ import annotations

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr
from jax.typing import DTypeLike

from vit_flax.chips import chip_of_kind
from vit_flax.config import TwoTowersConfig
from vit_flax.models import build_model
from vit_flax.train.config import TrainConfig

BACKWARD = 2  # gradients of both operands of each product: twice the forward's operations
_SIDE = 1024
_REPEATS = 8


def training_flops(config: TrainConfig) -> int:
    """Returns FLOPs per image of forward and backward pass: matrix products alone, without rematerialisation."""
    cfg = config.model
    model = build_model(cfg)
    images = jax.ShapeDtypeStruct((1, *cfg.image_size, cfg.in_chans), jnp.float32)
    inputs: list[Any] = [images]
    if isinstance(cfg, TwoTowersConfig):
        inputs.append(jax.ShapeDtypeStruct((1, cfg.text.context_length), jnp.int32))
    params = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    traced = jax.make_jaxpr(lambda p, *x: model.apply({"params": p}, *x))(params, *inputs)
    return (1 + BACKWARD) * count_flops(traced.jaxpr)


def count_flops(jaxpr: Jaxpr) -> int:
    """Returns the FLOPs of all products in a jaxpr, loops counted by their length."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            taken: Any = equation.invars[0].aval
            made: Any = equation.outvars[0].aval
            total += 2 * math.prod(made.shape) * math.prod(taken.shape[axis] for axis in contracted)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * count_flops(inner)
    return total


def peak_flops(config: TrainConfig) -> float:
    """Returns the peak FLOP/s of one device: given, published for the chip (in bf16), or measured."""
    if config.peak_flops is not None:
        return config.peak_flops
    kind = jax.local_devices()[0].device_kind
    if config.precision == "bf16" and (chip := chip_of_kind(kind)):
        return chip.flops
    return measure_flops(jnp.bfloat16 if config.precision == "bf16" else jnp.float32)


def measure_flops(dtype: DTypeLike) -> float:
    """Measures the FLOP/s of a large matrix product on each of this process's devices, the best of a few.

    All of them compute at once: devices of a CPU share its cores.
    """
    operands = [jax.device_put(jnp.ones((_SIDE, _SIDE), dtype), device) for device in jax.local_devices()]
    jax.block_until_ready([_square(x) for x in operands])
    best = math.inf
    for _ in range(_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready([_square(x) for x in operands])
        best = min(best, time.perf_counter() - start)
    return 2 * _SIDE**3 / best


@jax.jit
def _square(x: jax.Array) -> jax.Array:
    return jnp.matmul(x, x, preferred_element_type=jnp.float32)
