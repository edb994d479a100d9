"""LoRA with dropout: adapters applied beside their layers, with dropout of the adapters' inputs alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jaxtyping import Array, PyTree

from vit_flax.lora.adapters import A, B, parts
from vit_flax.lora.config import LoraConfig
from vit_flax.models.drop import dropout
from vit_flax.models.linear import Linear, matmul


def beside_kernels(frozen: PyTree, trained: PyTree, config: LoraConfig, scan: bool = False) -> PyTree:
    """Returns a model's parameters with adapters as parameters of their layers, for `applied_with_dropout`.

    Raises:
        ValueError: an adapter's layer is no `Linear`, or scanned blocks have different adapters.
    """
    flat, products = parts(frozen, trained, config)
    for kernel, pairs in products.items():
        layer = kernel.rpartition("/")[0]
        if flat[kernel].ndim != 2 or layer == "attn_pool/qkv":
            raise ValueError(f"lora.dropout acts on linear layers, and {layer} is none: lora.exclude={layer} leaves it "
                             "out, or lora.dropout=0")  # fmt: skip
        for number, (a, b) in enumerate(pairs):
            flat[f"{layer}/{A}_{number}"], flat[f"{layer}/{B}_{number}"] = a, b
    if scan:
        blocks: dict[str, set[str]] = {}
        for path in flat:
            if path.startswith("blocks_"):
                block, _, rest = path.partition("/")
                blocks.setdefault(block, set()).add(rest)
        if len({frozenset(paths) for paths in blocks.values()}) > 1:
            raise ValueError("lora.dropout with scan=True needs the same lora.targets in every block: set scan=False")
    return unflatten_dict(flat, sep="/")


@contextmanager
def applied_with_dropout(rate: float) -> Iterator[None]:
    """Makes models applied in the context add the outputs of the adapters of `beside_kernels`.

    Each adapter draws its own dropout mask over tokens and channels, in an apply with rngs={"dropout": key}.

    Reference: peft.tuners.lora.Linear.forward.
    """

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        module, method = context.module, context.method_name
        y = call(*args, **kwargs)
        if not isinstance(module, Linear) or method not in ("__call__", "parts", "join"):
            return y
        if not module.has_variable("params", f"{A}_0"):
            return y
        x = args[0] if method != "join" else args[0].reshape(*args[0].shape[:-2], -1)
        change = _change(module, x, rate)
        if method != "parts":
            return module.precision.cast_to_stored(y + change)
        changes = [part.reshape(own.shape) for part, own in zip(jnp.split(change, len(y), -1), y, strict=True)]
        return [module.precision.cast_to_stored(own + part) for own, part in zip(y, changes, strict=True)]

    with nn.intercept_methods(intercept):
        yield


def _change(module: Linear, x: Array, rate: float) -> Array:
    policy, total, number = module.precision, 0.0, 0
    while module.has_variable("params", f"{A}_{number}"):
        a, b = (module.get_variable("params", f"{kind}_{number}") for kind in (A, B))
        dropped = dropout(module, x, rate)
        inner: Any = matmul(dropped, a, policy.operand_dtype(dropped, a), policy.products)
        outer: Any = matmul(inner, b, policy.operand_dtype(inner, b), policy.products)
        total, number = total + outer, number + 1
    return jnp.asarray(total)
