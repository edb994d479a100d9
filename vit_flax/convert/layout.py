"""Layouts, and what of a config their tables tell from names and shapes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from vit_flax.config import ModelConfig, TwoTowersFamily, ViTFamily
from vit_flax.convert.moves import to_tensors
from vit_flax.convert.rules import ConversionError, Drop, Rule, match_template
from vit_flax.convert.stacked import stack, unstack

if TYPE_CHECKING:
    from vit_flax.convert.checkpoint import Checkpoint

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way of naming and shaping a ViT's tensors."""

    name: str
    description: str
    config_class: ViTFamily | TwoTowersFamily
    evidence: Callable[[Collection[str]], str | None]  # names -> the one that is evidence of the layout, or None
    infer: Callable[
        [Shapes, Mapping[str, object]], dict[str, object]
    ]  # infers fields from shapes, given the known ones
    rules: Callable[..., tuple[Rule | Drop, ...]]
    required: tuple[
        tuple[str, ...], ...
    ]  # fields that shapes may not determine; a later group follows from an earlier one
    defaults: Callable[[Mapping[str, object]], Mapping[str, object]]  # the reference's defaults, given the rest
    fixed: Mapping[str, tuple[object, ...]]  # the only values of fields that the layout can represent
    # of a ViTConfig here and below, or of a TwoTowersConfig where `config_class` is of such
    # torch module <-> linen module, as templates; only modules that a model of the config has
    components: Callable[..., tuple[tuple[str, str], ...]] = lambda config: ()
    conditions: Callable[..., list[str]] = lambda config: []  # what `fixed` cannot say of two fields together
    hint: str = ""  # what else to pass when a required field is unknown
    # how the layout's own library resizes position tables: a mode of vit_flax.models.resample; '': it does not
    resample: Callable[..., str] = lambda config: ""
    resample_rel_pos_bias: str = ""  # and how relative position bias tables: a mode of REL_POS_BIAS_MODES there
    aliases: tuple[tuple[str, str], ...] = ()  # (older name, today's name), as templates: read, never written
    # between tensors that are parts of one in the checkpoint, and those parts as the rules know them
    split: Callable[[Checkpoint], Checkpoint] | None = None
    join: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] | None = None
    # each a name: blocks are `name_0/...` to the rules, and one tensor `name/...` for all in the checkpoint
    stack: tuple[str, ...] = ()

    prefixes: tuple[str, ...] = ()  # prefix of the model within a larger one; rules have names without it
    prefix: Callable[..., str] = lambda config: ""  # the prefix that is written
    outside: tuple[str, ...] = ()  # first parts of names that are the larger model's own, and so have no prefix
    # what to say where names alone gave the layout away and are those of other models, too
    unsettled: Callable[[Collection[str]], str | None] = lambda names: None
    # as `evidence`, where a config.json has named the family; None: the same
    belongs: Callable[[Collection[str]], str | None] | None = None
    config_file: Callable[..., Mapping[str, object]] | None = None  # the config.json of the layout's own library
    # field -> its constructor's argument in the layout's own library, where the names differ; '': it has none
    arguments: Mapping[str, str] = dataclasses.field(default_factory=dict)
    # what that constructor makes of other fields, given them all
    implied: Callable[[Mapping[str, object]], Mapping[str, object]] = lambda fields: {}
    # where a classifier stands: (the module that people replace, the layer that rules know), without prefixes
    heads: tuple[tuple[str, str], ...] = ()
    # what of a model's config its own library's classifier has otherwise than its models without one
    classifier: Callable[..., Mapping[str, object]] = lambda config: {}

    @property
    def is_transformers(self) -> bool:
        """Whether the layout is of Hugging Face's transformers."""
        return self.name.startswith("huggingface_")

    def read(self, checkpoint: Checkpoint) -> Checkpoint:
        """Returns the checkpoint under the names that the rules know.

        Raises:
            ConversionError: a tensor is there under two names.
        """
        checkpoint = checkpoint.renamed(self.renamed(checkpoint.shapes))
        checkpoint = self.split(checkpoint) if self.split else checkpoint
        for stacked in self.stack:
            checkpoint = unstack(checkpoint, stacked)
        return checkpoint

    def write(self, params: Mapping[str, ArrayLike], config: ModelConfig) -> dict[str, np.ndarray]:
        """Returns parameters (by path) under the layout's names.

        Raises:
            ConversionError: lists every parameter that the layout has no place for.
        """
        tensors = to_tensors(params, self.rules(config))
        tensors = self.join(tensors) if self.join else tensors
        for stacked in self.stack:
            tensors = stack(tensors, stacked)
        prefix = self.prefix(config)
        return {name if name.startswith(self.outside) else prefix + name: a for name, a in tensors.items()}

    def renamed(self, names: Collection[str]) -> dict[str, str]:
        """Returns the rules' name of every tensor, by the name it has: today's, and without prefix.

        Raises:
            ConversionError: a tensor is there under both its names.
        """
        today = _with_lone_heads({name: self._today(name) for name in names}, self.heads)
        double = sorted(name for name, new in today.items() if new != name and new in today)
        if double:
            raise ConversionError(f"layout {self.name!r}: under two names of the same at once: {', '.join(double)}")
        return today

    def _today(self, name: str) -> str:
        name = next((name.removeprefix(prefix) for prefix in self.prefixes if name.startswith(prefix)), name)
        for old, new in self.aliases:
            if (bindings := match_template(old, name)) is not None:
                return new.format(**bindings)
        return name

    def refusals(self, config: ModelConfig) -> list[str]:
        """Returns what of `config` this layout cannot represent, a line each."""
        if config.family != self.config_class:
            own, held = config.family, self.config_class
            if isinstance(own, TwoTowersFamily) and isinstance(held, TwoTowersFamily):
                return [f"an image tower of {own.image.name} (it holds {held.image.name})"]
            return [f"model_config={config.family.name} (it holds {self.config_class.name})"]
        return [
            f"{field}={getattr(config, field)!r} (it holds {' or '.join(map(repr, values))})"
            for field, values in self.fixed.items()
            if getattr(config, field) not in values
        ] + self.conditions(config)


def _with_lone_heads(names: Mapping[str, str], heads: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns `names` (values are today's) with the one layer inside of a head under the name that rules know.

    `model.head = Sequential(Dropout(), Linear(...))` has its layer as head.1; it computes what head does. Several
    layers compute something else, and keep their names.
    """
    renamed = dict(names)
    for root, layer in heads:
        inside = {old: new for old, new in names.items() if new.startswith(f"{root}.")}
        layers = {new.rpartition(".")[0] for new in inside.values()}
        parts = {new.rpartition(".")[2] for new in inside.values()}
        if len(layers) == 1 and parts <= {"weight", "bias"} and layer not in layers:
            renamed |= {old: f"{layer}.{new.rpartition('.')[2]}" for old, new in inside.items()}
    return renamed


def only(config_class: ViTFamily, free: Collection[str], **values: tuple[object, ...]) -> dict[str, tuple[object, ...]]:
    """Returns `fixed` for a layout that holds any value of the `free` fields, these of `values`, and else the defaults.

    Named by what it can hold, a layout refuses a field that is added to the config later.
    """
    defaults = {name: (default,) for name, default in config_class.fields.items() if name not in free}
    return {**defaults, **values}


def containing(*needles: str) -> Callable[[Collection[str]], str | None]:
    """Returns the evidence of a layout whose tensor names contain every one of `needles`."""

    def evidence(names: Collection[str]) -> str | None:
        hits = [next((name for name in names if needle in name), None) for needle in needles]
        return " and ".join(str(hit) for hit in hits) if all(hits) else None

    return evidence


_MAX_BLOCKS = 1000
_MAX_GAPS = 100  # fewer are listed, tensor by tensor


def vote(shapes: Shapes, *templates: tuple[str, int]) -> int | None:
    """Returns the size that one axis has in most of the tensors that match the templates.

    A majority, so that one misshapen tensor is reported as such instead of deciding for all the others. A template
    that comes first wins a tie.
    """
    sizes: Counter[int] = Counter()
    for template, axis in templates:
        for name, shape in shapes.items():
            if match_template(template, name) is not None and -len(shape) <= axis < len(shape):
                sizes[shape[axis]] += 1
    return sizes.most_common(1)[0][0] if sizes else None


def count_blocks(shapes: Shapes, template: str) -> int | None:
    """Returns one more than the highest {i} among tensors that match the template.

    Raises:
        ConversionError: there are more than any model has, or most of them are missing.
    """
    found = {int(bindings["i"]) for name in shapes if (bindings := match_template(template, name)) is not None}
    count = max(found, default=-1) + 1
    if count > _MAX_BLOCKS or count - len(found) > _MAX_GAPS:
        raise ConversionError(f"blocks are numbered up to {count - 1}, and {len(found)} of them are there")
    return count or None


def any_match(shapes: Shapes, *templates: str) -> bool:
    """Returns whether a tensor matches one of the templates."""
    return any(match_template(template, name) is not None for template in templates for name in shapes)


def ratio_for(hidden: int, width: int) -> float:
    """Returns the smallest simple mlp_ratio for which int(width * ratio) is `hidden`."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else (hidden + 0.5) / width
