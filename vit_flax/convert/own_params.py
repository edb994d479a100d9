"""Parameters of this library's own models under their own paths: flat, nested, from Orbax or a .msgpack."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import FAMILIES, PlainViTConfig, TwoTowersFamily, ViTFamily
from vit_flax.convert.layout import Layout, Shapes
from vit_flax.convert.rules import ConversionError, Rule
from vit_flax.convert.two_towers import IMAGE, SUFFIX

_LEVELS = 8  # nested modules, at most
# Any path of that many levels, unchanged: the model knows which paths there are.
_PATHS = tuple(
    Rule(path, path) for path in ("/".join(f"{{p{level}}}" for level in range(n)) for n in range(1, _LEVELS + 1))
)
TOKENIZERS = ("patch_embed/proj/kernel", "tokens_to_token/project/kernel")
_TEXT = "text/"


def _evidence(names: Collection[str]) -> str | None:
    kernel = next((name for name in TOKENIZERS if name in names), None)
    block = next((name for name in names if name.startswith("blocks_0/")), None)
    return f"{kernel} and {block}" if kernel and block else None


def evidence_of_both(names: Collection[str]) -> str | None:
    """Returns the evidence of parameters of both towers, or None."""
    image = _evidence([name.removeprefix(IMAGE) for name in names if name.startswith(IMAGE)])
    text = next((name for name in names if name.startswith(f"{_TEXT}blocks_0/")), None)
    return f"{IMAGE}{image} and {text}" if image and text else None


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    if "depth" not in known:
        raise ConversionError(
            "these are parameters of this library's own models, which do not tell their model: pass "
            "`config=CONFIG`, the model's config or a preset's name"
        )
    head = shapes.get(f"{IMAGE}head/kernel", shapes.get("head/kernel", ()))
    return {"num_classes": head[1] if len(head) == 2 else 0}


def _layout(name: str, config_class: ViTFamily) -> Layout:
    return Layout(
        name=name,
        description=f"this library's own parameters ({config_class.name})",
        config_class=config_class,
        evidence=_evidence,
        infer=_infer,
        rules=lambda config: _PATHS,
        required=(),
        defaults=lambda known: {},
        fixed={},
        resample=lambda config: "bicubic_antialias",
    )


def _of_both(layout: Layout) -> Layout:
    """Returns the layout of a model whose image tower is `layout`'s."""
    return dataclasses.replace(
        layout,
        name=f"{layout.name}{SUFFIX}",
        description=f"{layout.description}, with a text tower",
        config_class=TwoTowersFamily(layout.config_class),  # pyright: ignore[reportArgumentType]
        evidence=evidence_of_both,
    )


FLAX = _layout("flax", PlainViTConfig)
# one layout of each family, such as `flax_beit` of BeitConfig, and one of each with a text tower
_IMAGE_LAYOUTS = (
    *(
        _layout(f"flax_{name.removesuffix('Config').removesuffix('ViT').lower()}", family)
        for name, family in FAMILIES.items()
        if family != FLAX.config_class
    ),
    FLAX,
)
FLAX_LAYOUTS: tuple[Layout, ...] = (*map(_of_both, _IMAGE_LAYOUTS), *_IMAGE_LAYOUTS)
