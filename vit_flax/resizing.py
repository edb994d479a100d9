"""Position tables and patch kernels of a checkpoint of other sizes than the model's."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Mapping, Sequence

from vit_flax.config import ModelConfig, TwoTowersConfig
from vit_flax.convert import ConversionError, Drop, Layout, Resolved, Rule, Wish
from vit_flax.convert.moves import Change, sources_of, stored_shape
from vit_flax.convert.two_towers import IMAGE
from vit_flax.models.relative_position_bias import relative_rows
from vit_flax.models.resample import MODES, PATCH_MODES, Grid
from vit_flax.size_changes import ChannelChange, PatchResize, RelPosBiasResize, RelPosResize, Resize, by

TABLE = "pos_embed"  # path of the position table
KERNEL = "patch_embed/proj/kernel"
REL_POS_BIAS = "relative_position_bias_table"  # how the paths of relative position bias tables end
REL_POS = ("rel_pos_h", "rel_pos_w")  # and of relative position embeddings along the height, and along the width


@dataclasses.dataclass(frozen=True)
class _Case:
    """A checkpoint's tensors, and the config and parameters of the model."""

    layout: Layout
    resolved: Resolved
    rules: Sequence[Rule | Drop]
    shapes: Mapping[str, tuple[int, ...]]  # shapes of the checkpoint's tensors
    expected: Mapping[str, tuple[int, ...]]  # shapes of the model's parameters, by path
    wish: Wish

    @property
    def config(self) -> ModelConfig:
        """The model's config."""
        return self.resolved.config

    @property
    def asked(self) -> bool:
        """Whether the caller gave the size, by a config, `image_size` or `patch_size`."""
        wish = self.wish
        return wish.told_config() is not None or "image_size" in wish.overrides or "patch_size" in wish.overrides

    @functools.cached_property
    def native_grid(self) -> Grid | None:
        """The checkpoint's grid of patches, from its config; None where that does not say it."""
        return self.resolved.native_grid()

    def path(self, path: str) -> str:
        """Returns the path of an image tower's parameter in the whole model."""
        return IMAGE + path if isinstance(self.config, TwoTowersConfig) else path

    def stored_shape(self, path: str) -> tuple[int, ...]:
        """Returns a parameter's shape in the checkpoint; () where it is missing or misshapen."""
        try:
            rule, names = sources_of(path, self.rules)
        except ConversionError:  # reported with everything else
            return ()
        return stored_shape(rule, names, self.shapes)

    def told_grid(self, path: str) -> Grid | None:
        """Returns the grid of a table that is stored as (1, H, W, D), otherwise None."""
        shape = self.shapes.get(sources_of(path, self.rules)[1][0], ())
        return (shape[1], shape[2]) if len(shape) == 4 else None


Resizes = dict[str, Change]


def find_resizes(
    layout: Layout,
    resolved: Resolved,
    rules: Iterable[Rule | Drop],
    shapes: Mapping[str, tuple[int, ...]],
    expected: Mapping[str, tuple[int, ...]],
    wish: Wish,
) -> tuple[Resizes, str]:
    """Returns the resizes of parameters by path, and the reason why one is impossible, or ''.

    A position table with as many rows as the model's has the model's grid, unless the caller's `source_grid` or the
    checkpoint's config says otherwise; the config's grid counts if it has as many patches as the table, and otherwise
    the grid must be square. A wish without a mode takes the layout's own.

    Raises:
        ConversionError: no such mode, or the table has not as many rows as `source_grid` asks for.
    """
    if wish.resample is not None and wish.resample not in MODES:
        raise ConversionError(f"unknown resampling mode {wish.resample!r}; known: {', '.join(MODES)}")
    case = _Case(layout, resolved, tuple(rules), shapes, expected, wish)
    table, obstacle = _table_resize(case)
    biases, bias_obstacle = _rel_pos_bias_resizes(case)
    kernel = _patch_resize(case) if "patch_size" in wish.overrides else None
    if kernel is None and "in_chans" in wish.overrides:
        kernel = _channel_change(case)
    rel_pos, rel_pos_obstacle = _rel_pos_resizes(case)
    found = {case.path(TABLE): table, case.path(KERNEL): kernel, **biases, **rel_pos}
    obstacle = obstacle or bias_obstacle or rel_pos_obstacle
    return {path: resize for path, resize in found.items() if resize is not None}, obstacle


def _patch_resize(case: _Case) -> PatchResize | None:
    # a mode of position tables that is none of patch kernels is replaced by timm's
    stored, wanted = case.stored_shape(case.path(KERNEL)), case.expected.get(case.path(KERNEL), ())
    if len(stored) != 4 or len(wanted) != 4 or stored[2:] != wanted[2:] or stored[:2] == wanted[:2]:
        return None
    mode = case.wish.resample if case.wish.resample in PATCH_MODES else "bicubic_antialias"
    return PatchResize(old=(stored[0], stored[1]), new=case.config.patch_size, mode=mode, stored_shape=stored)


def _channel_change(case: _Case) -> ChannelChange | None:
    stored, wanted = case.stored_shape(case.path(KERNEL)), case.expected.get(case.path(KERNEL), ())
    if len(stored) != 4 or len(wanted) != 4 or stored[2] != 3 or stored[2] == wanted[2]:
        return None
    mode = "summed" if wanted[2] == 1 else "repeated and scaled"
    return ChannelChange(old=(1, 3), new=(1, wanted[2]), mode=mode, stored_shape=stored)


def _table_resize(case: _Case) -> tuple[Resize | None, str]:
    config, layout = case.config, case.layout
    stored, wanted = case.stored_shape(case.path(TABLE)), case.expected.get(case.path(TABLE), ())
    if len(wanted) < 2 or len(stored) != len(wanted) or stored[:-2] + stored[-1:] != wanted[:-2] + wanted[-1:]:
        return None, ""
    if config.pos_embed_grid is not None:  # the model resizes it itself
        return None, ""
    new_grid = config.grid_size
    prefix = wanted[-2] - config.num_patches
    patches = stored[-2] - prefix
    if case.wish.source_grid is not None:
        old_grid: Grid | None = (int(case.wish.source_grid[0]), int(case.wish.source_grid[1]))
        if math.prod(old_grid) != patches:
            raise ConversionError(
                f"source_grid={old_grid} has {math.prod(old_grid)} patches; the position table has {patches} "
                f"({stored[-2]} rows, {prefix} of them for prefix tokens)"
            )
    elif told := case.told_grid(case.path(TABLE)):
        old_grid = told
    elif case.native_grid is not None and math.prod(case.native_grid) == patches:
        old_grid = case.native_grid
    elif stored == wanted:
        side = math.isqrt(patches)
        if case.native_grid is None and side * side == patches and new_grid != (side, side) and _is_resized(case):
            raise ConversionError(
                f"image_size={config.image_size} asks for a {by(new_grid)} grid of patches, and a position table of "
                f"{patches} may be for that or for {side}x{side}: pass `source_grid={new_grid}` or "
                f"`source_grid={(side, side)}`"
            )
        return None, ""
    else:
        side = math.isqrt(max(patches, 0))
        old_grid = (side, side) if side and side * side == patches else None
    if old_grid == new_grid:
        return None, ""
    wish = f"image_size={config.image_size} asks for a {by(new_grid)} grid of patches"
    if old_grid is None:
        return None, (
            f"{wish}, the position table is for {patches} patches, which is no square: if it was made for another "
            "image size, pass `source_grid=(HEIGHT, WIDTH)`"
        )
    found = f"{wish}, the position table is for a {by(old_grid)} grid"
    if config.pos_embed != "learned" and not layout.resample(config):  # T2T-ViT's own loader resizes its sinusoids
        return None, f"{found}: a table that is computed ({config.pos_embed}) is not resampled"
    if not case.asked:
        return None, f"{found}: pass `image_size={config.image_size}` to say that it is to be resized"
    mode = case.wish.resample or layout.resample(config)
    if not mode:
        return (
            None,
            f"{found}: layout {layout.name!r} does not say how to resize it, pass `resample=` "
            f"with {' or '.join(MODES)}",
        )
    change = Resize(old=old_grid, new=new_grid, num_prefix_tokens=prefix, mode=mode, stored_shape=stored)
    return change, ""


def _is_resized(case: _Case) -> bool:
    return case.config.pos_embed == "learned" and bool(case.layout.resample(case.config))


def _rel_pos_bias_resizes(case: _Case) -> tuple[dict[str, RelPosBiasResize], str]:
    config, resizes = case.config, {}
    for path in case.expected:
        if not path.endswith(REL_POS_BIAS):
            continue
        stored = case.shapes.get(sources_of(path, case.rules)[1][0], ())
        if len(stored) != 2:
            continue  # what is missing or misshapen is reported with everything else
        side = math.isqrt(max(stored[0] - 3, 0))
        square = ((side + 1) // 2, (side + 1) // 2)
        grids = (case.wish.source_grid, case.native_grid, square)
        candidates = [grid for grid in grids if grid and relative_rows(grid) == stored[0]]
        if not candidates or candidates[0] == config.grid_size:
            continue
        if not case.asked:
            found = f"the relative positions are for a {by(candidates[0])} grid, the model has {by(config.grid_size)}"
            return {}, f"{found}: pass `image_size=` to say that they are to be resized"
        mode = case.wish.resample or case.layout.resample_rel_pos_bias
        resizes[path] = RelPosBiasResize(old=candidates[0], new=config.grid_size, mode=mode, stored_shape=stored)
    return resizes, ""


def _rel_pos_resizes(case: _Case) -> tuple[dict[str, RelPosResize], str]:
    """Returns the resizes of the relative position embeddings of blocks with global attention."""
    resizes: dict[str, RelPosResize] = {}
    sides: dict[str, int] = dict(zip(REL_POS, case.config.grid_size, strict=True))
    for path, wanted in case.expected.items():
        side = sides.get(path.rpartition("/")[2])
        stored = case.stored_shape(path) if side else ()
        if len(stored) != 2 or stored == wanted or side is None or wanted[0] != 2 * side - 1:
            continue
        if not case.asked:
            return {}, (
                f"{path} is of {stored[0]} distances, and image_size={case.config.image_size} has {wanted[0]}: pass "
                f"`image_size={case.config.image_size}` to say that it is to be resized"
            )
        resizes[path] = RelPosResize(rows=wanted[0], stored_shape=stored)
    return resizes, ""
