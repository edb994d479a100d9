"""What a checkpoint is: layout, config and plan of its conversion, found once and held in one value."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from flax.traverse_util import unflatten_dict
from jaxtyping import PyTree

from vit_flax.classifier import find_replacement, fresh_parameters, is_head, several_layers
from vit_flax.config import ModelConfig, TwoTowersConfig, ViTConfig
from vit_flax.convert import (
    Beside,
    Checkpoint,
    ConversionError,
    Layout,
    Resolved,
    Wish,
    detect_layout,
    find_layout,
    get_layout,
    holds_text,
    read_beside,
    resolve_config,
)
from vit_flax.convert.foreign import foreign_kind
from vit_flax.convert.moves import Plan, plan, to_params
from vit_flax.convert.resolving import Sources
from vit_flax.convert.two_towers import is_of_text, text_fields
from vit_flax.device_arrays import on_device_from_any_thread
from vit_flax.models import TwoTowers, VisionTransformer, build_model
from vit_flax.models.shapes import expected_shapes
from vit_flax.resizing import find_resizes

Params = dict[str, PyTree]
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """A checkpoint with its layout, its config and the plan of its conversion."""

    wish: Wish
    checkpoint: Checkpoint  # under its own names
    tensors: Checkpoint  # the same under the names of the layout's rules
    layout: Layout
    evidence: str  # how the layout was detected
    resolved: Resolved | None  # None: a field of the config is not known
    plan: Plan | None  # the conversion of tensors to parameters, with resizing; None: there is no config
    # shapes of newly initialised parameters, by path: a classifier of another number of classes
    fresh: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    obstacle: str  # unknown fields of the config, or why a table of another size is not resized; '': none

    @property
    def config(self) -> ModelConfig:
        """The model's config; ConversionError where a field of it is not known."""
        if self.resolved is None:
            raise ConversionError(self.obstacle)
        return self.resolved.config

    @property
    def problems(self) -> list[str]:
        """Everything that keeps the model from being built, a line each."""
        if self.plan is None:
            return [self.obstacle]
        return [*self.plan.problems, *([self.obstacle] if self.obstacle and self.plan.problems else [])]

    def build(self) -> tuple[VisionTransformer | TwoTowers, Params]:
        """Returns the model and its parameters, in the tensors' own dtypes.

        Raises:
            ConversionError: a field of the config is not known, or tensors are missing, unexpected, ambiguous or
                misshapen (the message lists them all).
        """
        model = build_model(self.config)
        assert self.plan is not None
        try:
            flat = to_params(self.tensors, self.plan, on_device_from_any_thread())
        except ConversionError as error:
            if not self.obstacle:
                raise
            raise ConversionError(f"{error}\n  {self.obstacle}") from error
        dtype = next(iter(flat.values())).dtype
        return model, unflatten_dict({**flat, **fresh_parameters(self.fresh, dtype)}, sep="/")

    def build_image_tower(self) -> tuple[VisionTransformer, Params]:
        """Returns the model and its parameters, of a checkpoint read as a vision model.

        Raises:
            ConversionError: as `build`; or the model has both towers.
        """
        model, params = self.build()
        if not isinstance(model, VisionTransformer):
            raise ConversionError(f"{self.checkpoint.source}: has both towers: pass `tower='image'`")
        return model, params

    def log_notes(self) -> None:
        """Logs the checkpoint's notes as warnings: what was left out, cast or applied."""
        for note in self.checkpoint.notes:
            logger.warning("%s: %s", self.checkpoint.source, note)

    def to_dict(self) -> dict[str, Any]:
        """Returns the reading as JSON types: layout, config with origins, every tensor's fate, problems."""
        shapes = self.tensors.shapes
        config = {} if self.resolved is None else _flat(self.resolved.config)
        origins = {} if self.resolved is None else {"model_config": "layout", **self.resolved.origins}
        if self.plan is None:
            tensors = [(name, shape, "not decided yet") for name, shape in shapes.items()]
        else:
            tensors = [(fate.name, fate.shape, str(fate)) for fate in self.plan.fates]
        return {
            "source": self.tensors.source,
            "layout": self.layout.name,
            "evidence": self.evidence,
            "parameters": sum(math.prod(shape) for shape in shapes.values()),
            "no_tensors": dict(self.tensors.skipped),  # other entries of a training checkpoint, and their types
            "config": config,
            "origins": origins,
            "tensors": [{"name": name, "shape": list(shape), "fate": fate} for name, shape, fate in tensors],
            "notes": list(self.checkpoint.notes),  # what was left out, cast or applied
            "problems": self.problems,
        }


def _flat(config: ModelConfig) -> dict[str, Any]:
    fields = {name: list(v) if isinstance(v, tuple) else v for name, v in config.fields().items()}
    return {"model_config": config.family.name, **fields}


def read_model(checkpoint: Checkpoint, wish: Wish) -> Reading:
    """Finds layout, config and plan of a checkpoint that `open_checkpoint` returned.

    Raises:
        ConversionError: the layout is ambiguous or unknown, or there is no such resampling mode.
        ValueError: a field of the overrides does not exist, or values do not fit each other.
    """
    try:
        reading = _read_model(checkpoint, wish)
    except ConversionError as error:
        if other := _fitting_layout(checkpoint, wish):
            raise ConversionError(f"{error}; {other}") from error
        raise
    if reading.problems and (other := _fitting_layout(checkpoint, wish)):
        return dataclasses.replace(reading, obstacle="; ".join(filter(None, (reading.obstacle, other))))
    return reading


def _fitting_layout(checkpoint: Checkpoint, wish: Wish) -> str:
    """Returns which layout has a checkpoint's names where the one that was asked for has not; '' where that is none."""
    if wish.layout is None:
        return ""
    try:
        found, evidence = detect_layout(checkpoint.shapes)
        asked, trial = get_layout(wish.layout), _read_model(checkpoint, dataclasses.replace(wish, layout=found.name))
    except ValueError:
        return ""
    # a trial without a plan lacks fields of the config, as the layout that was asked for may, too
    fails = _has_blocks(asked, checkpoint) if trial.plan is None else bool(trial.plan.problems)
    if found == asked or fails:
        return ""
    return f"the names are those of layout {found.name!r} (has {evidence}): pass `layout={found.name!r}`"


def _has_blocks(layout: Layout, checkpoint: Checkpoint) -> bool:
    """Returns whether a layout finds its blocks in a checkpoint."""
    try:
        layout.infer(layout.read(checkpoint).shapes, {})
    except ConversionError:
        return False
    return True


def _read_model(checkpoint: Checkpoint, wish: Wish) -> Reading:
    if wish.config_file is not None:
        checkpoint = dataclasses.replace(checkpoint, config=wish.config_file)
    told = wish.told_config()
    beside, fault = _read_beside(checkpoint)
    try:
        layout, evidence = find_layout(checkpoint, wish, beside)
    except ConversionError as error:
        if fault is None or told is not None or foreign_kind(checkpoint.shapes):
            raise
        raise fault from error  # its config would have told the layout
    tensors = layout.read(checkpoint)
    found = partial(Reading, wish=wish, checkpoint=checkpoint, tensors=tensors, layout=layout, evidence=evidence)
    try:
        if fault is not None and told is None:
            raise fault
        first, last = _sources(wish, layout, told, beside)
        resolved = resolve_config(layout, tensors.shapes, wish.overrides, first, last, wish.source_grid)
    except ConversionError as error:
        return found(resolved=None, plan=None, obstacle=str(error))
    rules, expected = layout.rules(resolved.config), expected_shapes(build_model(resolved.config))
    fresh: Mapping[str, tuple[int, ...]] = {}
    if "num_classes" in wish.overrides and isinstance(resolved.config, ViTConfig):
        other = find_replacement(layout, resolved.config, rules, tensors.shapes, expected)
        if other:
            rules, fresh = other.rules, other.fresh
            expected = {path: shape for path, shape in expected.items() if not is_head(path)}
            checkpoint = dataclasses.replace(checkpoint, notes=(*checkpoint.notes, other.note))
    changes, obstacle = find_resizes(layout, resolved, rules, tensors.shapes, expected, wish)
    steps = plan(tensors.shapes, rules, expected, changes)
    if changes and "image_size" not in wish.overrides:  # an explicit image_size asks for it
        first, more = next(iter(changes)), f" (and {len(changes) - 1} more tables)" if len(changes) > 1 else ""
        note = f"{first} is resized {changes[first]}{more}"
        checkpoint = dataclasses.replace(checkpoint, notes=(*checkpoint.notes, note))
    left = [fate.name for fate in steps.fates if not fate.target and not fate.dropped]
    adapters = foreign_kind(tensors.shapes, taken=True) if left else None
    obstacle = obstacle or several_layers(layout, left) or adapters or ""
    found = partial(found, checkpoint=checkpoint, fresh=fresh)
    return found(resolved=resolved, plan=steps, obstacle=obstacle)


def _read_beside(checkpoint: Checkpoint) -> tuple[Beside | None, ConversionError | None]:
    try:
        return read_beside(checkpoint), None
    except ConversionError as error:  # raised later, unless the caller gives a config
        return None, error


def _sources(
    wish: Wish, layout: Layout, told: tuple[str, ModelConfig] | None, beside: Beside | None
) -> tuple[Sources, Sources]:
    """Returns the fields that count before the tensors, and those that count only where tensors say nothing."""
    if told is None:
        return ([] if beside is None else [(beside.origin, _told_beside(layout, beside))]), []
    origin, config = told
    if holds_text(layout) != isinstance(config, TwoTowersConfig):
        towers = "both towers" if holds_text(layout) else "an image tower"
        raise ConversionError(f"layout {layout.name!r} is of {towers}, and {origin} is not")
    fields: dict[str, Any] = config.fields_for(layout.config_class)  # pyright: ignore[reportArgumentType]
    last = {"num_classes": fields.pop("num_classes")} if wish.own_classes else {}
    return [(origin, fields)], [(origin, last)]


def _told_beside(layout: Layout, beside: Beside) -> dict[str, Any]:
    """Returns the fields, of a config beside the weights, of the towers to be read."""
    stored = {name: value for name, value in beside.fields.items() if not is_of_text(name)}
    if not holds_text(layout):
        return stored
    return {**beside.fields, **text_fields(beside.text() if beside.text else {})}
