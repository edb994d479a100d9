"""The same model with its prefix tokens as another layout has them.

A layout moves values and computes none. Every change here is noted, and leaves the model's outputs as they are: the
class token's row of the position table is added to the class token (as timm does with DINOv2's models with registers)
or inserted as zeros; the row that trunks without a class token do not read is left out or inserted as zeros; and the
mask token, which evaluation does not read, likewise.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping

import numpy as np

from vit_flax.config import ModelConfig, ViTConfig
from vit_flax.convert.layout import Layout

Flat = dict[str, np.ndarray]  # parameters by path


@dataclasses.dataclass(frozen=True)
class Step:
    """One change of a model that leaves its outputs as they are."""

    applies: Callable[[ViTConfig], bool]
    fields: Mapping[str, object]  # of the config, as they are afterwards
    change: Callable[[Flat], Flat]
    note: str


def _has_row(config: ViTConfig) -> bool:
    """Whether the position table has a row for the class token, and none for other prefix tokens."""
    return _folds(config) and not config.no_embed_class and (config.no_embed_reg or not config.reg_tokens)


def _folds(config: ViTConfig) -> bool:
    return config.class_token and not config.dist_token and config.pos_embed == "learned"


def _fold(flat: Flat) -> Flat:
    table = flat["pos_embed"]
    return {**flat, "cls_token": flat["cls_token"] + table[:, :1], "pos_embed": table[:, 1:]}


def _unfold(flat: Flat) -> Flat:
    table = flat["pos_embed"]
    return {**flat, "pos_embed": np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)}


_STEPS = (
    Step(
        lambda config: config.mask_token,
        {"mask_token": False},
        lambda flat: {path: value for path, value in flat.items() if path != "mask_token"},
        "mask_token is left out: it stands for masked patches in pre-training",
    ),
    Step(
        lambda config: not config.mask_token and config.class_token,
        {"mask_token": True},
        lambda flat: {**flat, "mask_token": np.zeros_like(flat["cls_token"])},
        "mask_token, which evaluation does not read, is zero as in a new model",
    ),
    Step(
        _has_row,
        {"no_embed_class": True, "no_embed_reg": False},
        _fold,
        "the class token's position is added to the class token, as this layout has no row for it",
    ),
    Step(
        lambda config: _folds(config) and config.no_embed_class and not config.reg_tokens,
        {"no_embed_class": False},
        _unfold,
        "the class token's position is zero, as this layout has a row for it",
    ),
    Step(
        lambda config: _folds(config) and config.no_embed_class and config.reg_tokens > 0,
        {"no_embed_class": False, "no_embed_reg": True},
        _unfold,
        "the class token's position is zero, as this layout has a row for it",
    ),
    Step(
        lambda config: config.pos_embed_class_row,
        {"pos_embed_class_row": False},
        lambda flat: {**flat, "pos_embed": flat["pos_embed"][:, 1:]},
        "the position embeddings' first row is left out: no token reads it",
    ),
    Step(
        lambda config: config.pos_embed_grid is not None and not config.pos_embed_class_row,
        {"pos_embed_class_row": True},
        _unfold,
        "the position embeddings' first row, which no token reads, is zero",
    ),
)


def steps_to(layout: Layout, config: ModelConfig) -> tuple[Step, ...] | None:
    """Returns the fewest steps after which the layout can hold a model of this config; None where none lead there."""
    if not layout.refusals(config):
        return ()
    if not isinstance(config, ViTConfig) or config.family != layout.config_class:
        return None
    possible = [step for step in _STEPS if step.applies(config)]
    for count in (1, 2):
        for steps in itertools.combinations(possible, count):
            if not layout.refusals(after(steps, config)):
                return steps
    return None


def after(steps: tuple[Step, ...], config: ViTConfig) -> ViTConfig:
    """Returns the config of the model after these steps."""
    return config.replace(**{name: value for step in steps for name, value in step.fields.items()})
