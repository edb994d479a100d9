"""Position tables and patch kernels of a checkpoint that was made for other sizes than the model is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from vit_flax.config import ViTConfig
from vit_flax.convert import ConversionError, Drop, Layout, Rule
from vit_flax.convert.rules import sources_of
from vit_flax.models.beit import relative_rows
from vit_flax.models.resample import (
    MODES,
    PATCH_MODES,
    Grid,
    resize_patch_embed,
    resize_pos_embed,
    resize_windows,
)

TABLE = "pos_embed"  # the parameter's path
KERNEL = "patch_embed/proj/kernel"
WINDOWS = "relative_position_bias_table"  # how the paths of such parameters end


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Change:
    """How a parameter comes from the checkpoint's size to the model's."""

    old: Grid
    new: Grid
    mode: str
    stored_shape: tuple[int, ...]  # of the whole parameter

    def __str__(self) -> str:
        """Says it in a few words."""
        return f"{_by(self.old)} -> {_by(self.new)}, {self.mode}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resize(_Change):
    """A table's way from the checkpoint's grid of patches to the model's."""

    num_prefix_tokens: int

    def __call__(self, table: Any) -> np.ndarray:
        """Returns the table resized, computed in float64 whatever its dtype."""
        return resize_pos_embed(np.asarray(table), self.old, self.new, self.num_prefix_tokens, self.mode)


class PatchResize(_Change):
    """A patch kernel's way from the checkpoint's patch size to the model's."""

    def __call__(self, kernel: Any) -> np.ndarray:
        """Returns the kernel resized, computed in float64 whatever its dtype."""
        return resize_patch_embed(np.asarray(kernel), self.new, self.mode)


class WindowResize(_Change):
    """The way of a table of relative positions from the checkpoint's grid of patches to the model's."""

    def __call__(self, table: Any) -> np.ndarray:
        """Returns the table resized, computed in float64 whatever its dtype."""
        return resize_windows(np.asarray(table), self.old, self.new, self.mode)


def find_patch_resize(
    config: ViTConfig,
    rules: Iterable[Rule | Drop],
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    mode: str | None = None,
) -> PatchResize | None:
    """Returns how the checkpoint's patch kernel comes to the patch size that the caller asks for, or None if it has it.

    Modes are those of vit_flax.models.resample.PATCH_MODES; where `mode` is none of them (it is for positions as well)
    or None, it is timm's, 'bicubic_antialias'.
    """
    stored, wanted = _stored_shape(rules, shapes, KERNEL), expected.get(KERNEL, ())
    if len(stored) != 4 or len(wanted) != 4 or stored[2:] != wanted[2:] or stored[:2] == wanted[:2]:
        return None
    mode = mode if mode in PATCH_MODES else "bicubic_antialias"
    return PatchResize(old=(stored[0], stored[1]), new=config.patch_size, mode=mode, stored_shape=stored)


def find_resize(
    layout: Layout,
    config: ViTConfig,
    rules: Iterable[Rule | Drop],
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    mode: str | None = None,
    source_grid: Grid | None = None,
    native_grid: Grid | None = None,
    asked: bool = True,
) -> tuple[Resize | None, str]:
    """Returns how the checkpoint's position table comes to the model's grid, or None and what stands in the way.

    A table of as many rows as the model's is taken for one of the same grid, unless `source_grid` or `native_grid` says
    otherwise.

    Args:
        layout: the layout of the tensors; its mode is taken where `mode` is None.
        config: of the model.
        rules: the layout's table.
        shapes: shape of every tensor of the checkpoint.
        expected: shape of every parameter of the model, by path.
        mode: a name of vit_flax.models.resample.MODES.
        source_grid: (height, width) of the checkpoint's grid, for certain.
        native_grid: what a config says it is, taken if it has as many patches as the table; else it must be square.
        asked: whether it was the caller who said for what image size.

    Raises:
        ConversionError: no such mode, or the table has not as many rows as `source_grid` asks for.
    """
    if mode is not None and mode not in MODES:
        raise ConversionError(f"unknown resampling mode {mode!r}; known: {', '.join(MODES)}")
    stored, wanted = _stored_shape(rules, shapes, TABLE), expected.get(TABLE, ())
    if len(wanted) < 2 or len(stored) != len(wanted) or stored[:-2] + stored[-1:] != wanted[:-2] + wanted[-1:]:
        return None, ""
    new_grid = config.grid_size
    prefix = wanted[-2] - config.num_patches
    patches = stored[-2] - prefix
    if source_grid is not None:
        old_grid: Grid | None = (int(source_grid[0]), int(source_grid[1]))
        if math.prod(old_grid) != patches:
            raise ConversionError(
                f"source_grid={old_grid} has {math.prod(old_grid)} patches; the position table has {patches} "
                f"({stored[-2]} rows, {prefix} of them for prefix tokens)"
            )
    elif native_grid is not None and math.prod(native_grid) == patches:
        old_grid = native_grid
    elif stored == wanted:
        return None, ""
    else:
        side = math.isqrt(max(patches, 0))
        old_grid = (side, side) if side and side * side == patches else None
    if old_grid == new_grid:
        return None, ""
    wish = f"image_size={config.image_size} asks for a {_by(new_grid)} grid of patches"
    if old_grid is None:
        return None, (
            f"{wish}, the position table is for {patches} patches, which is no square: if it was made for another "
            "image size, pass source_grid=(height, width)"
        )
    found = f"{wish}, the position table is for a {_by(old_grid)} grid"
    if config.pos_embed != "learned" and not layout.resample(config):  # T2T-ViT's own loader resizes its sinusoids
        return None, f"{found}: a table that is computed ({config.pos_embed}) is not resampled"
    if not asked:
        return None, f"{found}: pass image_size= to say that it is to be resized"
    mode = mode or layout.resample(config)
    if not mode:
        return (
            None,
            f"{found}: layout {layout.name!r} does not say how to resize it, pass resample= {' or '.join(MODES)}",
        )
    change = Resize(old=old_grid, new=new_grid, num_prefix_tokens=prefix, mode=mode, stored_shape=stored)
    return change, ""


def find_window_resizes(
    layout: Layout,
    config: ViTConfig,
    rules: Iterable[Rule | Drop],
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    mode: str | None = None,
    source_grid: Grid | None = None,
    native_grid: Grid | None = None,
    asked: bool = True,
) -> tuple[dict[str, WindowResize], str]:
    """Returns by its path how each table of relative positions comes to the model's grid, and what stands in the way.

    The arguments are those of `find_resize`.
    """
    rules, resizes = list(rules), {}
    for path in expected:
        if not path.endswith(WINDOWS):
            continue
        stored = shapes.get(sources_of(path, rules)[1][0], ())
        if len(stored) != 2:
            continue  # what is missing or misshapen is reported with everything else
        side = math.isqrt(max(stored[0] - 3, 0))
        square = ((side + 1) // 2, (side + 1) // 2)
        candidates = [grid for grid in (source_grid, native_grid, square) if grid and relative_rows(grid) == stored[0]]
        if not candidates or candidates[0] == config.grid_size:
            continue
        if not asked:
            found = f"the relative positions are for a {_by(candidates[0])} grid, the model has {_by(config.grid_size)}"
            return {}, f"{found}: pass image_size= to say that they are to be resized"
        mode = mode or layout.resample_windows
        resizes[path] = WindowResize(old=candidates[0], new=config.grid_size, mode=mode, stored_shape=stored)
    return resizes, ""


def _stored_shape(rules: Iterable[Rule | Drop], shapes: Mapping[str, tuple[int, ...]], path: str) -> tuple[int, ...]:
    try:
        rule, names = sources_of(path, rules)
        probes = [np.broadcast_to(np.zeros((), np.int8), shapes[name]) for name in names]
        return rule.operation.forward(*probes).shape
    except (KeyError, ValueError):  # what is missing or misshapen is reported with everything else
        return ()


def _by(grid: Grid) -> str:
    return f"{grid[0]}x{grid[1]}"
