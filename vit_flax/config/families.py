"""The pairs of parts that published models have, by the names of their constructors."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping
from typing import Any

from vit_flax.config.position import KeyMask, NoPosition, Position, RelativeBias, Rotation
from vit_flax.config.staged_windows import StagedWindows
from vit_flax.config.tokens import NormedPatches, OverlappingPatches, PaddedPatches, Patches, SoftSplits, Tokens
from vit_flax.config.vit import OWN_FIELDS, PARTS, ViTConfig
from vit_flax.config.windows import RelativeWindows, RotatedWindows
from vit_flax.suggestions import suggest


@dataclasses.dataclass(frozen=True)
class ViTFamily:
    """A constructor of configs whose two parts are of given kinds, with defaults of its own.

    It takes every field by name, those of the parts beside ViTConfig's.
    """

    name: str  # as stored configs have it
    tokens: type[Tokens]
    position: type[Position]
    defaults: Mapping[str, object] = dataclasses.field(default_factory=dict, hash=False)  # where not ViTConfig's

    def __call__(self, **fields: object) -> ViTConfig:
        """Returns the config of these fields; ValueError for a name that is none."""
        return ViTConfig(tokens=self.tokens(), position=self.position(), **{**self.defaults, **fields})

    @functools.cached_property
    def fields(self) -> dict[str, object]:
        """Every field's name with its default."""
        found = {name: ViTConfig.__dataclass_fields__[name].default for name in OWN_FIELDS}
        for kind in (self.tokens, self.position):
            found |= {field.name: field.default for field in dataclasses.fields(kind)}
        return {**found, **self.defaults}

    def check_names(self, names: Iterable[str]) -> None:
        """Raises ValueError for the first name that is no field, suggesting the nearest one."""
        fields = [*self.fields, *PARTS]
        for name in names:
            if name not in fields:
                hint = suggest(name, fields, f"fields: {', '.join(fields)}")
                raise ValueError(f"{self.name} has no field {name!r}; {hint}")


# the ViT, and whatever differs from it by values alone
PlainViTConfig = ViTFamily("ViTConfig", Patches, NoPosition)
# T2T-ViT: soft splits with transformers between
T2TViTConfig = ViTFamily("T2TViTConfig", SoftSplits, NoPosition, {"num_heads": 1})
# heads of a width of their own, whatever embed_dim is
LucidrainsViTConfig = ViTFamily(
    "LucidrainsViTConfig", NormedPatches, NoPosition, {"qkv_bias": False, "norm_eps": 1e-5, "attn_head_dim": 64}
)
# DINOv3 and EVA
RopeViTConfig = ViTFamily(
    "RopeViTConfig", Patches, Rotation,
    {"norm_eps": 1e-5, "init_values": 1.0, "pos_embed": "none", "key_bias": False},
)  # fmt: skip
# BEiT: a relative position bias in attention
BeitConfig = ViTFamily(
    "BeitConfig", Patches, RelativeBias, {"pos_embed": "none", "init_values": 0.1, "key_bias": False}
)
# SigLIP 2's models for images of any aspect ratio
NaFlexViTConfig = ViTFamily(
    "NaFlexViTConfig", PaddedPatches, KeyMask,
    {"class_token": False, "global_pool": "map", "num_classes": 0, "activation": "gelu_tanh"},
)  # fmt: skip
# ViTDet and the image encoder of SAM: most blocks attend inside windows
WindowedViTConfig = ViTFamily(
    "WindowedViTConfig", Patches, RelativeWindows, {"class_token": False, "global_pool": "avg", "final_norm": False}
)
# the image encoder of SAM 3: they are rotated there
WindowedRopeViTConfig = ViTFamily(
    "WindowedRopeViTConfig", Patches, RotatedWindows,
    {"class_token": False, "global_pool": "avg", "pre_norm": True, "patch_bias": False, "final_norm": False},
)  # fmt: skip
# the image encoder of SAM 2: stages of blocks, between which queries are pooled
HieraViTConfig = ViTFamily(
    "HieraViTConfig", OverlappingPatches, StagedWindows,
    {"block": "multi_scale", "image_size": (1024, 1024), "embed_dim": 96, "depth": 12, "num_heads": 1,
     "num_classes": 0, "class_token": False, "pos_embed_grid": (7, 7), "global_pool": "avg", "final_norm": False},
)  # fmt: skip

# the published pairs of parts, by name
FAMILIES: dict[str, ViTFamily] = {
    family.name: family
    for family in (
        PlainViTConfig,
        T2TViTConfig,
        LucidrainsViTConfig,
        RopeViTConfig,
        BeitConfig,
        NaFlexViTConfig,
        WindowedViTConfig,
        WindowedRopeViTConfig,
        HieraViTConfig,
    )
}


def family_of(tokens: type[Tokens], position: type[Position]) -> ViTFamily:
    """Returns the family of two kinds of parts; a pair that no published model has is one of its own."""
    for family in FAMILIES.values():
        if (family.tokens, family.position) == (tokens, position):
            return family
    return ViTFamily(f"{tokens.__name__}+{position.__name__}", tokens, position)


def find_family(name: str) -> ViTFamily:
    """Returns the family of that name, or ValueError listing those that there are."""
    if name in FAMILIES:
        return FAMILIES[name]
    kinds = {kind.__name__: kind for family in FAMILIES.values() for kind in (family.tokens, family.position)}
    tokens, _, position = name.partition("+")
    if tokens in kinds and position in kinds:
        return family_of(kinds[tokens], kinds[position])  # pyright: ignore[reportArgumentType]
    raise ValueError(f"unknown model_config {name!r}; known: {', '.join(FAMILIES)}")


def config_from_dict(values: Mapping[str, object]) -> ViTConfig:
    """Returns the config that `to_dict` described, of this version or an earlier one.

    Raises:
        ValueError: a key is no field of that config (the nearest field is suggested), or the class is unknown.
    """
    fields: dict[str, Any] = dict(values)
    family = find_family(fields.pop("model_config", PlainViTConfig.name))
    return family(**_upgraded(family, fields))


def _upgraded(family: ViTFamily, values: dict[str, Any]) -> dict[str, Any]:
    """Returns stored fields without those of patches that every config had once, also where it has none now."""
    once = {field.name: field.default for field in dataclasses.fields(Patches) if field.name not in family.fields}
    once = {name: list(value) if isinstance(value, tuple) else value for name, value in once.items()}
    return {name: value for name, value in values.items() if once.get(name, ...) != value}
