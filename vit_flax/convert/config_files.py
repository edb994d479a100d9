"""What a library's config.json says of a model beyond its tensors: one table, read and written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vit_flax.config import ViTConfig
from vit_flax.convert.rules import ConversionError


@dataclasses.dataclass(frozen=True)
class ConfigFile:
    """How the attributes of a config.json are fields of a ViTConfig, for one family of models.

    An attribute that is in none of the tables is refused unless it is empty or switched off: it may well change what
    the model computes.
    """

    model_types: tuple[str, ...]  # values of the attribute model_type that name this family
    defaults: Mapping[str, Any]  # of the attributes that are read; files leave out what is at its default
    fields: Mapping[str, str]  # attribute -> field that has the same values
    read_more: Callable[[Mapping[str, Any]], Mapping[str, Any]]  # attributes, defaults filled in -> further fields
    write_more: Callable[[ViTConfig], Mapping[str, Any]]  # config -> further attributes, model_type among them
    constants: Mapping[str, Any]  # attributes of which the models here compute one value only
    ignored: Collection[str]  # attributes that evaluation does not read
    spelled: Callable[[Collection[str]], str | None]  # names -> what shows that they are of this layout, type known
    part: str = ""  # the attribute that holds the model's own config where it is part of a larger one

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the fields that a config.json tells.

        Raises:
            ConversionError: it is of another family, or attributes are not understood; all are named.
        """
        model_type = config.get("model_type")
        if model_type not in self.model_types:
            known = " or ".join(map(repr, self.model_types))
            raise ConversionError(f"config.json: model_type is {model_type!r}, this layout's is {known}")
        if self.part and isinstance(inner := config.get(self.part), Mapping):
            config = inner
        given = {name: value for name, value in config.items() if value is not None}
        attributes = {**self.defaults, **{name: value for name, value in given.items() if name in self.defaults}}
        faults = [
            f"{name}={value!r} (only {self.constants[name]!r} is computed here)"
            for name, value in given.items()
            if name in self.constants and value != self.constants[name]
        ]
        faults += [
            f"{name}={value!r} (not known)"
            for name, value in given.items()
            if value and not self._knows(name) and not name.startswith("_")
        ]
        faults += [
            f"{name}={value!r} (expected {_kind(self.defaults[name])})"
            for name, value in attributes.items()
            if not _is_like(value, self.defaults[name])
        ]
        if faults:
            raise ConversionError(f"config.json: cannot be honoured: {', '.join(faults)}"[:2000])
        return {
            **{field: attributes[name] for name, field in self.fields.items()},
            **self.read_more(attributes),
        }

    def write(self, config: ViTConfig) -> dict[str, Any]:
        """Returns the config.json of a model."""
        own = {**self.constants, **{name: getattr(config, field) for name, field in self.fields.items()}}
        more = dict(self.write_more(config))
        if self.part in more:
            return {**more, self.part: {**own, **more[self.part]}}
        return {**own, **more}

    def _knows(self, name: str) -> bool:
        return name in self.defaults or name in self.constants or name in self.ignored


def _is_like(value: Any, default: Any) -> bool:
    if isinstance(default, bool | str):
        return isinstance(value, type(default))
    if isinstance(default, int) and isinstance(value, list | tuple):  # a size may be a pair
        return len(value) == 2 and all(_is_like(side, default) for side in value)
    kinds = (int, float) if isinstance(default, float) else (int,)
    return isinstance(value, kinds) and not isinstance(value, bool)


def _kind(default: Any) -> str:
    return {bool: "true or false", str: "a text", float: "a number"}.get(type(default), "an integer")
