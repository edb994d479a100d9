"""In which dtypes a model holds its parameters, multiplies, and stores what lies between its layers."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array

# of float32 products: in full unless the caller says otherwise, for the default of TPU and of recent GPUs is not
HIGHEST = lax.Precision.HIGHEST


def accumulator_dtype(dtype: DTypeLike) -> Any:
    """Returns the dtype in which products of `dtype` are summed: float32, or float64 for float64."""
    return jnp.promote_types(dtype, jnp.float32)


@dataclasses.dataclass(frozen=True)
class Precision:
    """The dtypes of a model, one value that all its layers get.

    Sums, softmax and the statistics of normalisation are float32 (float64 for float64) whatever is said here.
    """

    params: DTypeLike = jnp.float32
    compute: DTypeLike | None = None  # operands of products; None: what inputs and parameters promote to
    stored: DTypeLike | None = None  # between layers and for the backward pass; None: float32 or wider
    stream: DTypeLike | None = None  # tokens between residual branches; None: float32 or wider
    products: Any = HIGHEST  # how exactly float32 products are computed: a jax.lax.Precision

    @classmethod
    def of(cls, dtype: DTypeLike | None, param_dtype: DTypeLike, precision: Any) -> Precision:
        """Returns the value of a model's fields; `precision` is of float32 products, or a whole Precision."""
        if not isinstance(precision, cls):
            return cls(params=param_dtype, compute=dtype, products=precision)
        params = precision.params if jnp.dtype(param_dtype) == jnp.float32 else param_dtype
        return dataclasses.replace(precision, params=params, compute=precision.compute if dtype is None else dtype)

    def operand_dtype(self, *operands: Array) -> Any:
        """Returns the dtype in which these are multiplied."""
        return self.compute or jnp.result_type(*(operand.dtype for operand in operands))

    def keep(self, x: Array) -> Array:
        """Returns what a layer hands on, in the dtype that is stored."""
        return x if self.stored is None else x.astype(self.stored)

    def flow(self, x: Array) -> Array:
        """Returns tokens in the dtype of the residual stream."""
        return x if self.stream is None else x.astype(self.stream)
