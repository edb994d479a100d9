"""Positions in attention, beside the position embedding: none, rotary, relative position bias, key padding mask."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from vit_flax.config.checks import Pair, pair, require_choice, require_positive
from vit_flax.config.part import Part

if TYPE_CHECKING:
    from vit_flax.config.vit import ViTConfig

# how the angles of a rotation are made
ROPE_TYPES = ("dinov3", "cat", "mixed", "none")
# which axis of the grid comes first in the angles
GRID_INDEXINGS = ("ij", "xy")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position(Part):
    """How attention learns where a token is."""

    blocks: ClassVar[tuple[str, ...]] = ("standard", "res_post")  # the kinds of block whose attention takes it

    repeats: ClassVar[bool] = True  # a model may have any number of its blocks

    def check(self, config: ViTConfig) -> None:
        """Raises ValueError where the blocks' attention cannot take it."""
        if config.block not in self.blocks:
            raise ValueError(f"{type(self).__name__} needs block={' or '.join(self.blocks)}, got {config.block!r}")

    def representatives(self, depth: int) -> tuple[int, ...]:
        """Returns for every block the first one whose attention has the same shapes and sees as much."""
        return (0,) * depth

    def sees_all(self, index: int) -> bool:
        """Whether block `index` attends to all tokens."""
        del index
        return True

    # Where blocks are of several stages, tokens become fewer and wider between them.

    def grid_before(self, config: ViTConfig, index: int) -> Pair:
        """Returns the patches along height and width that block `index` is given, or leave the last for its number."""
        del index
        return config.grid_size

    def dim_before(self, config: ViTConfig, index: int) -> int:
        """Returns the width of the tokens that block `index` is given, or leave the last for its number."""
        del index
        return config.embed_dim

    def heads(self, config: ViTConfig, index: int) -> int:
        """Returns the heads of block `index`."""
        del index
        return config.num_heads

    def feature_level(self, config: ViTConfig) -> int:
        """Returns the number of the block before which tokens have the grid of the features that leave the model."""
        return config.depth


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoPosition(Position):
    """No position in attention: tokens carry it from the position table."""

    def check(self, config: ViTConfig) -> None:
        """Raises nothing: every block does without."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rotation(Position):
    """Rotary position embedding of the patches' queries and keys; DINOv3, EVA, arXiv 2403.13298."""

    # 'dinov3' turns by where a patch is in the image, 'cat' by its number; 'mixed' by its number, in learned directions
    rope_type: str = "dinov3"
    rope_theta: float = 100.0  # of the periods of rotation the longest, the shortest being 1 (patch, or half side)
    rope_rotate_half: bool = True  # turns channel j with j + head_dim / 2; False: channel 2 j with 2 j + 1
    rope_grid_indexing: str = "ij"  # the first channels follow the row; 'xy': the column
    rope_grid_offset: float = 0.0  # the first patch's number
    rope_ref_grid: Pair | None = None  # numbers are stretched to a grid of this (height, width)
    rope_class_token: bool = False  # the class token is rotated as well, by learned angles; MLCD

    spared: ClassVar[tuple[str, ...]] = ("rope_freqs", "rope_class_angles")

    def __post_init__(self) -> None:
        """Checks what stands by itself."""
        if self.rope_ref_grid is not None:
            object.__setattr__(self, "rope_ref_grid", pair("rope_ref_grid", self.rope_ref_grid))
        require_choice("rope_type", self.rope_type, ROPE_TYPES)
        require_choice("rope_grid_indexing", self.rope_grid_indexing, GRID_INDEXINGS)
        require_positive("rope_theta", self.rope_theta)
        if self.rope_type == "mixed" and self.rope_rotate_half:
            raise ValueError("rope_type='mixed' needs rope_rotate_half=False")
        if self.rope_type == "dinov3" and (self.rope_grid_offset or self.rope_ref_grid):
            raise ValueError("rope_type='dinov3' takes neither rope_grid_offset nor rope_ref_grid")

    def check(self, config: ViTConfig) -> None:
        """Raises ValueError where heads are of a width that two axes cannot share."""
        super().check(config)
        if self.rope_type != "none" and config.head_dim % 4:
            raise ValueError(f"a rotation in two axes needs heads of a width divisible by 4, got {config.head_dim}")
        if self.rope_class_token and self.rope_type in ("mixed", "none"):
            raise ValueError(f"rope_type={self.rope_type!r} does not take rope_class_token=True")
        if self.rope_class_token and not (config.class_token and config.num_prefix_tokens == 1):
            raise ValueError("rope_class_token=True needs class_token=True, and no dist_token or reg_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelativeBias(Position):
    """Relative position bias: learned per head and relative offset of two patches, added to the logits; BEiT."""

    rel_pos_bias: bool = True  # every block has a table
    shared_rel_pos_bias: bool = False  # all blocks have one together, beside their own if they have any

    spared: ClassVar[tuple[str, ...]] = ("relative_position_bias_table",)
    stem: ClassVar[tuple[str, ...]] = ("rel_pos_bias/.*",)

    def check(self, config: ViTConfig) -> None:
        """Raises ValueError for other prefix tokens than the class token, which the tables' last rows are of."""
        super().check(config)
        if config.num_prefix_tokens != 1 or not config.class_token:
            raise ValueError("relative position bias takes a class token and patches alone: no dist_token, reg_tokens")


@dataclasses.dataclass(frozen=True, kw_only=True)
class KeyMask(Position):
    """Key padding mask: nothing attends to the padding of `PaddedPatches`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextMask(Position):
    """A mask of keys for texts: nothing attends to padding, nor, where `causal`, to what comes later."""

    causal: bool = True
