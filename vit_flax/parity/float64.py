"""Removes the casts to float32 in other libraries' float64 models."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    import torch

# Classes of transformers and the methods in which tensors of float64 are cast to float32: what stands for half
# precision there costs digits here. Their float32 runs stay as they are.
_NARROWING = {
    "Siglip2VisionEmbeddings": "resize_positional_embeddings",
    "Sam3ViTRotaryEmbedding": "forward",
    "Sam3ViTRoPEAttention": "forward",
    "Sam2VisionNeck": "forward",
}


@contextlib.contextmanager
def computed_in_float64(module: torch.nn.Module) -> Iterator[list[str]]:
    """Makes the methods of transformers that cast float64 to float32 keep float64, within the context.

    Yields:
        The names of those parts' classes.
    """
    kinds: dict[Any, str] = {}
    for part in module.modules():
        for kind in type(part).__mro__:
            if kind.__name__ in _NARROWING:
                kinds[kind] = _NARROWING[kind.__name__]
    with contextlib.ExitStack() as stack:
        for kind, name in kinds.items():
            method: Any = kind.__dict__[name]
            is_static = isinstance(method, staticmethod)
            wide = _in_float64(method.__func__ if is_static else method)
            stack.enter_context(mock.patch.object(kind, name, staticmethod(wide) if is_static else wide))
        yield sorted(kind.__name__ for kind in kinds)


def _in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function with casts that keep float64 tensors."""
    import torch

    to, narrow = torch.Tensor.to, torch.Tensor.float

    def kept(self: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        is_narrowed = self.dtype is torch.float64 and torch.float32 in (*arguments, named.get("dtype"))
        return self if is_narrowed else to(self, *arguments, **named)

    def kept_float(self: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        return self if self.dtype is torch.float64 else narrow(self, *arguments, **named)

    def run(*arguments: Any, **named: Any) -> Any:
        with mock.patch.object(torch.Tensor, "to", kept), mock.patch.object(torch.Tensor, "float", kept_float):
            return function(*arguments, **named)

    return run
