"""Records every component's output in execution order: torch by hooks, Flax by interception.

Components have their framework's names: `backbone.blocks.0.attn` in torch, `blocks_0/attn` in Flax. A name followed by
`:input` is the component's first argument.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import numpy as np
from jaxtyping import PyTree

if TYPE_CHECKING:
    import torch

INPUT = ":input"


def record_torch(
    module: torch.nn.Module, images: torch.Tensor, names: Collection[str]
) -> tuple[torch.Tensor, dict[str, np.ndarray]]:
    """Runs a torch module and returns its output and the named components' arrays, in execution order.

    Args:
        module: a torch.nn.Module.
        images: its input, a torch tensor.
        names: module names as in `named_modules()`, followed by `:input` for a module's input.

    Raises:
        ValueError: a name is not in `named_modules()`.
    """
    modules = dict(module.named_modules())
    unknown = sorted(name for name in names if name.removesuffix(INPUT) not in modules)
    if unknown:
        raise ValueError(f"the torch module has no component named {', '.join(unknown)}")
    recorded: dict[str, np.ndarray] = {}

    def keep(name: str, value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        # a copy: the next module may change the tensor in place
        recorded.setdefault(name, value.detach().double().cpu().numpy().copy())

    hooks = []
    for name in names:
        target = modules[name.removesuffix(INPUT)]
        if name.endswith(INPUT):
            hooks.append(target.register_forward_pre_hook(lambda _m, args, name=name: keep(name, args)))  # pyright: ignore[reportArgumentType]
        else:
            hooks.append(target.register_forward_hook(lambda _m, _args, out, name=name: keep(name, out)))
    try:
        return module(images), recorded
    finally:
        for hook in hooks:
            hook.remove()


def record_flax(
    function: Callable[[PyTree, jax.Array], jax.Array], params: PyTree, images: jax.Array, names: Collection[str]
) -> tuple[jax.Array, dict[str, np.ndarray]]:
    """Runs `function(params, images)` under jit and returns its output and the named linen components' arrays.

    Args:
        function: calls linen modules; the arrays of a component called twice are those of its first call.
        params: first argument of `function`.
        images: second argument of `function`.
        names: module paths such as `blocks_0/attn`, followed by `:input` for a module's input.

    Raises:
        ValueError: a named component was never called; the message lists those that were.
    """
    called: dict[str, None] = {}  # at trace time, so in execution order

    def run(params: PyTree, images: Any) -> tuple[Any, dict[str, Any]]:
        arrays: dict[str, Any] = {}

        def keep(name: str, value: Any) -> None:
            called.setdefault(name)
            if name in names and name not in arrays:
                arrays[name] = value

        def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            path = "/".join(context.module.path)
            if args:
                keep(path + INPUT, args[0])
            out = call(*args, **kwargs)
            keep(path, out[0] if isinstance(out, tuple) else out)
            return out

        with nn.intercept_methods(intercept):
            out = function(params, images)
        return out, arrays

    out, arrays = jax.jit(run)(params, images)
    unknown = sorted(set(names) - set(called))
    if unknown:
        known = ", ".join(name for name in called if not name.endswith(INPUT))
        raise ValueError(f"the Flax function called no component named {', '.join(unknown)}; it called {known}")
    return out, {name: np.asarray(arrays[name], np.float64) for name in called if name in arrays}
