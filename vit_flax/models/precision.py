"""Mixed precision: the dtypes of parameters, of operands, and of stored activations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax
from jax.lax import PrecisionLike
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from vit_flax.models.placed import custom_vjp

# of float32 products: full precision unless the caller says otherwise, which TPUs' and recent GPUs' default is not
HIGHEST = lax.Precision.HIGHEST

GPUS = ("gpu", "cuda", "rocm")  # platforms


@dataclasses.dataclass(frozen=True)
class Target:
    """The machine that a program is compiled for, which need not be the one that compiles it."""

    platform: str | None = None  # 'cpu', 'tpu', 'gpu'; None: whatever the program is lowered for
    devices: int = 1
    kind: str = ""  # JAX's device_kind, where it is known


# part of the key of every jit cache, so that what was traced for one machine is never run on another
_target = jax.make_user_context(Target())


def compiled_for(platform: str | None, devices: int = 1, kind: str = "") -> AbstractContextManager[None]:
    """Makes models traced in this context choose dtypes and kernels for that platform.

    See `Precision.of` and `attention_backend`; by `kind`, a device's `device_kind`, kernels know its fast memory.
    """
    return _target(Target(platform, devices, kind))


def target() -> Target:
    """Returns the machine that models are traced for now."""
    return _target.value


def accumulator_dtype(dtype: DTypeLike) -> np.dtype:
    """Returns the dtype in which products of `dtype` are summed: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Precision:
    """The dtypes of a model, one value that all its layers get.

    Sums, softmax and the statistics of normalisation are float32 (float64 for float64) whatever is said here, and so
    are logits and features.
    """

    params: DTypeLike = jnp.float32
    compute: DTypeLike | None = None  # operands of products; None: what inputs and parameters promote to
    stored: DTypeLike | None = None  # between layers and for the backward pass; None: float32 or wider
    stream: DTypeLike | None = None  # tokens between residual branches; None: float32 or wider
    products: PrecisionLike = HIGHEST  # how exactly float32 products are computed: a jax.lax.Precision

    @classmethod
    def of(cls, dtype: DTypeLike | None, param_dtype: DTypeLike, precision: PrecisionLike | Precision) -> Precision:
        """Returns the policy of a model's fields; `precision` is of float32 products, or a whole Precision.

        Where bfloat16 is multiplied it is stored too, unless the target is a CPU: memory is what bounds a TPU or GPU,
        and a CPU's products are faster with results in float32. The residual stream stays float32: in bfloat16 logits
        are 1.4 times as far from float64. A whole Precision is taken as it is.
        """
        if not isinstance(precision, Precision):
            is_narrow = dtype is not None and jnp.dtype(dtype) == jnp.bfloat16  # it may be a name
            narrow = dtype if is_narrow and target().platform != "cpu" else None
            return cls(params=param_dtype, compute=dtype, stored=narrow, products=precision)
        params = precision.params if jnp.dtype(param_dtype) == jnp.float32 else param_dtype
        return dataclasses.replace(precision, params=params, compute=precision.compute if dtype is None else dtype)

    @property
    def is_stored_as_computed(self) -> bool:
        """Whether activations are stored in the dtype of the products.

        Scanned blocks then store their kernels' gradients so, too, as torch's autocast does: each is rounded once.
        """
        if self.compute is None or self.stored is None:  # `in` would find that NumPy's float64 equals None
            return False
        return jnp.dtype(self.compute) == jnp.dtype(self.stored)

    @property
    def wide(self) -> Precision:
        """The same policy with activations stored in float32 or wider: for the last layers."""
        return dataclasses.replace(self, stored=None, stream=None)

    def operand_dtype(self, *operands: Array) -> DTypeLike:
        """Returns the dtype in which these are multiplied."""
        return self.compute or jnp.result_type(*(operand.dtype for operand in operands))

    def cast_to_stored(self, x: Array) -> Array:
        """Returns a layer's output in the dtype in which activations are stored."""
        return x if self.stored is None else x.astype(self.stored)

    def cast_to_stream(self, x: Array) -> Array:
        """Returns the tokens in the dtype of the residual stream."""
        return x.astype(self.stream or accumulator_dtype(x.dtype))


def with_kernels_in(params: PyTree, dtype: DTypeLike | None) -> PyTree:
    """Returns the parameters with the kernels cast to the dtype of the products; None casts none."""
    if dtype is None:
        return params
    flat: dict[tuple[str, ...], Any] = flatten_dict(params)  # pyright: ignore[reportAssignmentType]
    return unflatten_dict({path: leaf.astype(dtype) if path[-1] == "kernel" else leaf for path, leaf in flat.items()})


def rounded(product: Callable[..., Array], a: Array, b: Array, stored: DTypeLike, bias: Array | None = None) -> Array:
    """Computes `product(a, b, dtype) + bias`, summed in float32 and rounded once, as each platform does that best.

    GPUs round as the product is written, where its library adds the bias too; a conversion afterwards is a pass of its
    own. TPUs fuse what follows. XLA:CPU would convert the operands of such a product to float32, which is slow.
    """

    def narrow(*operands: Array) -> Array:
        y = product(*operands[:2], stored)
        return y if bias is None else (y + operands[2]).astype(stored)

    def wide(*operands: Array) -> Array:
        y = product(*operands[:2], accumulator_dtype(a.dtype))
        return (y if bias is None else y + operands[2]).astype(stored)

    operands = (a, b) if bias is None else (a, b, bias)
    return lax.platform_dependent(*operands, cuda=narrow, rocm=narrow, default=wide)


@partial(custom_vjp, nondiff_argnums=(0,))
def recomputed(function: Callable[..., Array], *args: Array) -> Array:
    """Computes an elementwise function in float32 and returns the first argument's dtype.

    The backward pass keeps the arguments as they are stored and computes the rest again: differentiation would keep
    what it needs of the function in float32.
    """
    return function(*(x.astype(accumulator_dtype(x.dtype)) for x in args)).astype(args[0].dtype)


def _recomputed_forward(function: Callable[..., Array], *args: Array) -> tuple[Array, tuple[Array, ...]]:
    return recomputed(function, *args), args


def _recomputed_backward(function: Callable[..., Array], args: tuple[Array, ...], g: Array) -> tuple[Array, ...]:
    _, pullback = jax.vjp(lambda *args: function(*(x.astype(accumulator_dtype(x.dtype)) for x in args)), *args)
    return pullback(g.astype(accumulator_dtype(g.dtype)))


recomputed.defvjp(_recomputed_forward, _recomputed_backward)
