"""Intermediate features: which blocks' tokens are returned, and in which format."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vit_flax.config import ViTConfig
from vit_flax.config.checks import Pair
from vit_flax.models.placed import reshape

Intermediate = Array | tuple[Array, Array]  # patches, or patches and prefix tokens
OUTPUT_FORMATS = ("NHWC", "NLC")


@dataclasses.dataclass(frozen=True)
class Intermediates:
    """A request for intermediate features: arguments of `VisionTransformer.forward_intermediates`, documented there.

    Raises:
        ValueError: there is no such format.
    """

    indices: int | Sequence[int] | None = None
    return_prefix_tokens: bool = False
    norm: bool = False
    output_fmt: str = "NHWC"

    def __post_init__(self) -> None:
        """Checks the format; a list of indices becomes a tuple, so that requests can be compared."""
        check_format(self.output_fmt, None)
        if self.indices is not None and np.ndim(self.indices):
            object.__setattr__(self, "indices", tuple(self.indices))  # pyright: ignore[reportArgumentType]


def taken_blocks(indices: int | Sequence[int] | np.ndarray | None, depth: int) -> tuple[int, ...]:
    """Returns the numbers of the blocks that are asked for, from the first to the last, each once.

    Args:
        indices: numbers of blocks, negative ones from the end; an int: so many last ones; None: all.
        depth: how many blocks there are.

    Raises:
        ValueError: there is no such block, or none is asked for.

    Reference: timm.models._features.feature_take_indices.
    """
    if indices is None:
        return tuple(range(depth))
    if isinstance(indices, bool | str):
        raise ValueError(f"indices must be a number of last blocks or a list of block numbers, got {indices!r}")
    if not np.ndim(indices):
        count = operator.index(indices)  # pyright: ignore[reportArgumentType]
        if not 1 <= count <= depth:
            raise ValueError(f"indices={count} asks for so many last blocks; the model has {depth}: 1 to {depth}, or "
                             f"[{count}] for that one block")  # fmt: skip
        return tuple(range(depth - count, depth))
    numbers = [operator.index(index) for index in indices]  # pyright: ignore[reportGeneralTypeIssues]
    if not numbers:
        raise ValueError("indices is empty: name a block, or None for all")
    if wrong := [number for number in numbers if not -depth <= number < depth]:
        raise ValueError(f"no block {wrong[0]}: the model has {depth}, numbered 0 to {depth - 1}")
    return tuple(sorted({number % depth for number in numbers}))


def laid_out(
    tokens: Float[Array, "b n d"], config: ViTConfig, size: Pair, grid: bool, return_prefix_tokens: bool
) -> Intermediate:
    """Returns the patches of all tokens, (B, H, W, D) as a `grid` of that size or (B, N, D), with the prefix or not."""
    first = config.num_prefix_tokens
    patches = tokens[:, first:]
    if grid:
        patches = reshape(patches, patches.shape[0], *size, patches.shape[-1])
    return (patches, tokens[:, :first]) if return_prefix_tokens and first else patches


def check_format(output_fmt: str, spatial_shapes: ArrayLike | None) -> bool:
    """Returns whether a grid is asked for.

    Raises:
        ValueError: there is no such format, or images of different shapes have no grid in common.
    """
    if output_fmt not in OUTPUT_FORMATS:
        hint = "; grids have their channels last here: 'NHWC'" if output_fmt == "NCHW" else ""
        raise ValueError(f"output_fmt must be 'NHWC' or 'NLC', got {output_fmt!r}{hint}")
    if output_fmt == "NHWC" and spatial_shapes is not None:
        raise ValueError("images of different shapes have no grid in common: pass `output_fmt='NLC'`")
    return output_fmt == "NHWC"
