"""The config of a checkpoint in a layout: from what the caller says, what its files say, and what its tensors show."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from vit_flax.config import ModelConfig
from vit_flax.config.two_towers import TEXT
from vit_flax.convert.layout import Layout, Shapes
from vit_flax.convert.rules import ConversionError


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
