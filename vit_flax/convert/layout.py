"""Layouts, and the resolution of a model's config for a checkpoint in one."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from vit_flax.config import ModelConfig, TwoTowersFamily, ViTFamily
from vit_flax.config.two_towers import TEXT
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


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A config with the origin of every field's value."""

    config: ModelConfig
    origins: Mapping[str, str]
    native: Mapping[str, object]  # the checkpoint's own image_size and patch_size, where something but the caller tells

    def native_grid(self) -> tuple[int, int] | None:
        """Returns the checkpoint's own grid of patches; None where nothing tells it, or only the number of patches."""
        if self.origins["image_size"] == "tensor shapes":  # told from the rows of a table, taken for a square
            return None
        asked = {name: value for name, value in self.native.items() if self.origins.get(name) == "given"}
        if asked.get("image_size", ()) is None:
            return None
        try:
            return self.config.replace(**asked).grid_size
        except (ValueError, TypeError):
            return None


Sources = Sequence[tuple[str, Mapping[str, object]]]


def resolve_config(
    layout: Layout,
    shapes: Shapes,
    overrides: Mapping[str, object],
    sources: Sources,
    fallback: Sources = (),
    source_grid: tuple[int, int] | None = None,
) -> Resolved:
    """Finds the config of a checkpoint.

    Args:
        layout: the layout of the tensors.
        shapes: shape of every tensor.
        overrides: single fields that the caller gave; they win.
        sources: (origin, fields) pairs, the one that wins first: a preset, a config file.
        fallback: such pairs that count only where the tensors say nothing.
        source_grid: (height, width) of the checkpoint's grid of patches, where the caller says it.

    Raises:
        ConversionError: a field is still unknown (the message names all that are and what to pass), or values do not
            fit each other.
        ValueError: a source names a field that does not exist.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def add(origin: str, fields: Mapping[str, Any]) -> None:
        for name, value in fields.items():
            if name not in values:
                values[name], origins[name] = value, origin

    for origin, fields in (("given", overrides), *sources):
        layout.config_class.check_names(fields)
        add(origin, fields)
    rows = layout.fixed.get("no_embed_class", ())  # what the layout has alone, or else what the grid tells
    settled = {"no_embed_class": rows[0]} if len(rows) == 1 else {}
    inferred = {**layout.infer(shapes, {**settled, **values, "source_grid": source_grid}), **settled}
    for name in _decided(layout, values, inferred, {n for n, origin in origins.items() if origin.startswith(_SOFT)}):
        del values[name], origins[name]
    add("tensor shapes", inferred)
    for origin, fields in fallback:
        add(origin, fields)
    for group in layout.required:
        missing = [name for name in group if name not in values]
        if not missing:
            continue
        raise ConversionError(
            f"layout {layout.name!r}: the tensors do not tell {', '.join(missing)}; pass "
            + ", ".join(_choices(name, values) for name in missing)
            + ", or `config=` with a preset's name"
            + layout.hint
            + ("; or `tower='image'` for the image tower alone" if any(n.startswith(TEXT) for n in missing) else "")
        )
    defaults = layout.defaults(values)
    add(f"default of layout {layout.name}", defaults)
    try:
        config = layout.config_class(**values)
    except (ValueError, TypeError, ArithmeticError) as error:  # of values from files, too
        raise ConversionError(str(error)) from error
    told = [*(fields for _, fields in sources), {"patch_size": inferred.get("patch_size")}, defaults]
    native = {name: next((f[name] for f in told if f.get(name)), None) for name in ("image_size", "patch_size")}
    return Resolved(config, {name: origins.get(name, "default") for name in config.fields()}, native)


# Origins of what is said of an architecture and not of these tensors.
_SOFT = ("preset ", "config.json ", "open_clip_config.json")
# Kinds of layers that tensors show, whatever a preset of nearly the same architecture says. Absent tensors may be
# missing from a damaged file, and decide nothing.
_SHOWN = (
    "init_values",
    "qk_norm",
    "scale_attn_norm",
    "scale_mlp_norm",
    "qkv_bias",
    "proj_bias",
    "mlp_bias",
    "no_embed_reg",
)


def _decided(layout: Layout, values: Mapping[str, Any], inferred: Mapping[str, Any], soft: Collection[str]) -> set[str]:
    """Returns the fields of `soft` in which the tensors are right."""

    def holds(name: str, value: Any) -> bool:
        return value in layout.fixed.get(name, (value,))

    wrong = {name for name in soft if inferred.get(name, values[name]) != values[name]}
    decided = {name for name in wrong if name in _SHOWN and not values[name]}
    decided |= {name for name in wrong if not holds(name, values[name]) and holds(name, inferred[name])}
    decided |= {"head_bias"} & wrong
    decided |= {"num_classes"} if "num_classes" in wrong and inferred["num_classes"] else set()
    if "mlp_layer" in wrong:  # which activation such a layer has is not that of the other kind
        decided |= {"mlp_layer"} | {"mlp_ratio", "activation"} & set(soft)
    return decided - {"mask_token"}  # which may be left out


# Values of fields that only the caller knows: how to write one, and the choices.
_CHOICES = {
    "num_heads": ("N", ""),
    "image_size": ("(HEIGHT, WIDTH)", ""),
    "patch_size": ("(HEIGHT, WIDTH)", ""),
    "softsplit_kernels": ("(K, K, K)", "(7, 3, 3) in T2T-ViT"),
    "in_chans": ("N", "3 for colours"),
    "norm_eps": ("EPSILON", "1e-6, 1e-5 or 1e-12: as its library has it"),
    "activation": ("NAME", "'gelu', 'gelu_tanh', 'quick_gelu' or 'silu'"),
    "global_pool": ("NAME", "'token', 'avg', 'map' or 'none'"),
    "fc_norm": ("BOOL", "True: normalised after pooling"),
    "pool_include_prefix": ("BOOL", "True: pooling looks at class token and registers, too"),
    "no_embed_class": ("BOOL", "True: the position table has no rows for class token and registers"),
    "block": ("NAME", "'standard' or 'res_post'"),
    "window_size": ("N", "patches along a side: 14 in SAM and ViTDet; 0: every block sees all"),
    "window_sizes": (
        "(N, N, N, N)",
        "by stage: (8, 4, 14, 7) in SAM 2, (8, 4, 16, 8) in its large",
    ),
    "stage_heads": ("(N, N, N, N)", "by stage: (1, 2, 4, 8) in SAM 2's tiny and small, (2, 4, 8, 16) in its others"),
    "patch_stride": ("(HEIGHT, WIDTH)", "pixels from a patch to the next"),
    "patch_padding": ("(HEIGHT, WIDTH)", "zeros on each side of the image"),
    "global_attn_indexes": (
        "(N, N, N)",
        "of the blocks that see all: (2, 5, 8, 11) in SAM and ViTDet of ViT-B, (5, 7, 9) in SAM 2's tiny",
    ),
    "qk_scale": ("NUMBER", "None: head_dim ** -0.5, as the published weights; or what the model was built with"),
}

_TEXT_CHOICES = {
    "causal": ("BOOL", "True: tokens see those before them alone"),
    "pool": ("NAME", "'argmax' or 'eos', the token that ends a text: that of the highest number or of "
             "`text_eos_token_id=N`; or 'last'"),
}  # fmt: skip


def _choices(name: str, values: Mapping[str, Any]) -> str:
    tower, field = (TEXT, name.removeprefix(TEXT)) if name.startswith(TEXT) else ("", name)
    spelled, choice = (_TEXT_CHOICES if tower else {}).get(field) or _CHOICES.get(field, ("...", ""))
    width = values.get(f"{tower}embed_dim", 0)
    if field == "num_heads" and width and width % 64 == 0:
        choice = f"{width // 64} if heads are 64 wide"
    return f"`{name}={spelled}`" + (f" ({choice})" if choice else "")


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
