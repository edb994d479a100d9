"""The config of an image tower and a text tower that share an embedding space."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable, Mapping
from typing import Any

from vit_flax.config.families import ViTFamily, config_from_dict
from vit_flax.config.field_types import check_types
from vit_flax.config.text import TextConfig
from vit_flax.config.vit import ViTConfig
from vit_flax.suggestions import suggest

TEXT = "text_"  # prefix of a text tower's fields where those of both towers are in one mapping
LOGIT_BIAS = "logit_bias"
_WIDTH = TextConfig().width  # of the embeddings, unless a config says another
_TEXT_FIELDS = tuple(field.name for field in dataclasses.fields(TextConfig))


@dataclasses.dataclass(frozen=True)
class TwoTowersFamily:
    """The constructor of configs whose image tower is of one family, from the fields of both towers by name.

    Those of the image tower have their own names, those of the text tower `text_` before them.
    """

    image: ViTFamily
    name = "TwoTowersConfig"  # as stored configs have it

    def __call__(self, **fields: object) -> TwoTowersConfig:
        """Returns the config of these fields; ValueError for a name that is none."""
        self.check_names(fields)
        text: dict[str, Any] = {n.removeprefix(TEXT): value for n, value in fields.items() if self._is_text(n)}
        image = {name: value for name, value in fields.items() if not self._is_text(name) and name != LOGIT_BIAS}
        image.setdefault("num_classes", _WIDTH)
        try:
            tower = TextConfig(**text)
        except ValueError as error:
            raise ValueError(f"the text tower's {error}") from error
        return TwoTowersConfig(image=self.image(**image), text=tower, logit_bias=fields.get(LOGIT_BIAS, False))  # pyright: ignore[reportArgumentType]

    @staticmethod
    def _is_text(name: str) -> bool:
        return name.startswith(TEXT)

    @functools.cached_property
    def fields(self) -> dict[str, object]:
        """Every field's name with its default."""
        text = {TEXT + field.name: field.default for field in dataclasses.fields(TextConfig)}
        return {**self.image.fields, "num_classes": _WIDTH, **text, LOGIT_BIAS: False}

    def check_names(self, names: Iterable[str]) -> None:
        """Raises ValueError for the first name that is no field, suggesting the nearest one."""
        fields = [*self.fields, "tokens", "position"]
        for name in names:
            if name not in fields:
                raise ValueError(f"{self.name} has no field {name!r}; {suggest(name, fields, 'text_... are the text')}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoTowersConfig:
    """Architecture of a two-tower model: both towers, and how their embeddings are compared.

    The image tower's head is its projection into the shared space. Its fields and properties are read as the config's
    own, the text tower's with `text_` before them: `config.image_size`, `config.text_depth`.

    Raises:
        ValueError: the towers' embeddings are not of one width.
    """

    image: ViTConfig
    text: TextConfig
    logit_bias: bool = False  # a learned bias of the logits; such models are trained by, and answer in, a sigmoid

    def __post_init__(self) -> None:
        """Checks that the towers fit each other."""
        check_types(self)
        if self.image.global_pool == "none":
            raise ValueError("an image tower with global_pool='none' gives no embedding")
        width = self.image_width
        if width != self.text.width:
            raise ValueError(f"the image tower's embeddings are {width} wide, the text tower's {self.text.width}")

    @property
    def image_width(self) -> int:
        """Width of the image tower's embedding."""
        image = self.image
        return image.num_classes or image.feature_dim * (2 if image.global_pool == "token_avg" else 1)

    def __getattr__(self, name: str) -> Any:
        """Returns a field of the image tower, or of the text tower."""
        if not name.startswith("_") and "image" in vars(self):
            if name.startswith(TEXT) and name.removeprefix(TEXT) in _TEXT_FIELDS:
                return getattr(self.text, name.removeprefix(TEXT))
            return getattr(self.image, name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def family(self) -> TwoTowersFamily:
        """The constructor of configs with such an image tower."""
        return TwoTowersFamily(self.image.family)

    def fields(self) -> dict[str, object]:
        """Returns every field by name, those of the text tower with `text_` before them."""
        text = {TEXT + name: getattr(self.text, name) for name in _TEXT_FIELDS}
        return {**self.image.fields(), **text, LOGIT_BIAS: self.logit_bias}

    def fields_for(self, family: TwoTowersFamily) -> dict[str, object]:
        """Returns the fields for another family's image tower."""
        own = {name: value for name, value in self.fields().items() if name not in self.image.family.fields}
        return {**self.image.fields_for(family.image), **own}

    def replace(self, **changes: object) -> TwoTowersConfig:
        """Returns a copy with some fields changed, by the names of `fields`, or whole towers."""
        parts: dict[str, Any] = {name: changes.pop(name) for name in ("image", "text") if name in changes}
        parts = {"image": self.image, "text": self.text, LOGIT_BIAS: changes.pop(LOGIT_BIAS, self.logit_bias), **parts}
        names = [name for name in changes if name.startswith(TEXT)]
        text: dict[str, Any] = {name.removeprefix(TEXT): changes.pop(name) for name in names}
        if odd := next((n for n in changes if n in _TEXT_FIELDS and n not in parts["image"].family.fields), None):
            raise ValueError(f"the image tower has no field {odd!r}; did you mean {TEXT + odd!r}?")
        image = parts["image"].replace(**changes) if changes else parts["image"]
        return TwoTowersConfig(**{**parts, "image": image, "text": parts["text"].replace(**text)})

    def to_dict(self) -> dict[str, object]:
        """Returns the config as JSON types, with the family's name under 'model_config'."""
        towers = {"image": self.image.to_dict(), "text": self.text.to_dict()}
        return {"model_config": self.family.name, **towers, LOGIT_BIAS: self.logit_bias}

    def to_json(self) -> str:
        """Returns `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=2)


# the config of a ViT, or of one with a text tower
ModelConfig = ViTConfig | TwoTowersConfig


def model_config_from_dict(values: Mapping[str, object]) -> ModelConfig:
    """Returns the config that `to_dict` of either kind described.

    Raises:
        ValueError: a key is no field of that config (the nearest field is suggested), or the class is unknown.
    """
    fields: dict[str, Any] = dict(values)
    if fields.get("model_config") != TwoTowersFamily.name:
        return config_from_dict(values)
    del fields["model_config"]
    names = [field.name for field in dataclasses.fields(TwoTowersConfig)]
    for wanted, part in (("image", fields.get("image")), ("text", fields.get("text"))):
        if not isinstance(part, Mapping):
            raise ValueError(f"{TwoTowersFamily.name} needs its {wanted!r}, got {part!r}")
    for wanted, found in ((names, fields), (_TEXT_FIELDS, fields["text"])):
        for name in found:
            if name not in wanted:
                raise ValueError(f"{TwoTowersFamily.name} has no field {name!r}; {suggest(name, wanted, 'none near')}")
    return TwoTowersConfig(
        image=config_from_dict(fields["image"]),
        text=TextConfig(**fields["text"]),
        logit_bias=bool(fields.get(LOGIT_BIAS, False)),
    )
