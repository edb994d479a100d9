"""The base of the two parts of a config: how an image becomes tokens, how attention learns where a token is."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from vit_flax.config.vit import ViTConfig


Axes = tuple[str | tuple[str, ...] | None, ...]  # of a mesh, for the last axes of a parameter
ShardingRule = tuple[str, *tuple[Axes, ...]]  # a pattern of parameter paths, and the axes to try in their order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Fields of a config that only one kind of model has, and what follows from them.

    The linen side is the class that `vit_flax.models.parts` names for it.
    """

    spared: ClassVar[tuple[str, ...]] = ()  # last names of parameters that are exempt from weight decay
    fixed: ClassVar[tuple[str, ...]] = ()  # last names of parameters that are stored, never trained
    stem: ClassVar[tuple[str, ...]] = ()  # patterns of parameter paths that layer-wise learning rates count as the stem
    sharding: ClassVar[tuple[ShardingRule, ...]] = ()  # rules before those of vit_flax.train.sharding

    def check(self, config: ViTConfig) -> None:
        """Raises ValueError where the part does not fit the rest of the config."""
