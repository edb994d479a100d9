"""Nested frozen dataclasses: to JSON types and back, and with fields replaced by dotted names."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from vit_flax.config import ModelConfig, PlainViTConfig, TwoTowersConfig, ViTConfig
from vit_flax.suggestions import did_you_mean, nearest
from vit_flax.train.config.synonyms import SYNONYMS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")


def to_dict(config: DataclassInstance) -> dict[str, object]:
    """Returns the fields of a dataclass as JSON types, nested ones as dicts."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, ModelConfig):
        return value.to_dict()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value


def frozen(value: object) -> object:
    """Returns `value` with every list in it as a tuple, so that a config can be hashed."""
    return tuple(frozen(v) for v in value) if isinstance(value, tuple | list) else value


def freeze_lists(config: DataclassInstance) -> None:
    """Makes every list in the fields of a frozen dataclass a tuple, in its `__post_init__`."""
    for field in dataclasses.fields(config):
        object.__setattr__(config, field.name, frozen(getattr(config, field.name)))


def field_names(config_class: type) -> list[str]:
    """Returns the names of the fields; of a ViTConfig those of its parts too."""
    if issubclass(config_class, ViTConfig):
        return list(PlainViTConfig.fields)
    return [field.name for field in dataclasses.fields(config_class)]


def check_names(config_class: type, names: Mapping[str, object], prefix: str = "") -> None:
    """Raises ValueError for the first name that is no field, suggesting the nearest one."""
    fields = field_names(config_class)
    for name in names:
        if name not in fields:
            near = suggest(config_class, str(name))
            hint = did_you_mean(prefix + path for path in near) if near else f"fields: {', '.join(fields)}"
            raise ValueError(f"{config_class.__name__} has no field {prefix + str(name)!r}; {hint}")


def suggest(config_class: type, name: str) -> list[str]:
    """Returns the dotted paths that an unknown name may mean: those of the same last part first, then similar ones."""
    paths = dotted_paths(config_class)
    last = name.split(".")[-1]
    if (path := SYNONYMS.get(last)) in paths:
        return [path]
    if same := [path for path in paths if path.split(".")[-1] == name]:
        return same
    fields = field_names(config_class)
    if "." not in name and (near := nearest(name, fields)):
        return near
    if near := nearest(name, paths, cutoff=0.8):
        return near
    ends = {path.split(".")[-1]: path for path in reversed(paths)}
    return [ends[near] for near in nearest(last, ends, cutoff=0.8)]


def dotted_paths(config_class: type, prefix: str = "") -> list[str]:
    """Returns the paths of every field, of nested configs and of the model as well, as `replace_dotted` takes them."""
    nested = getattr(config_class, "NESTED", {})
    paths = []
    for name in field_names(config_class):
        inner = ViTConfig if name == "model" else nested.get(name)
        paths.append(prefix + name)
        if inner is not None:
            paths += dotted_paths(inner, f"{prefix}{name}.")
    return paths


def replace_dotted(config: T, changes: Mapping[str, object], prefix: str = "") -> T:
    """Returns a config with fields changed by dotted names, such as {'data.batch_size': 64}.

    A whole nested config may be given as a mapping of its fields; None removes one that may be absent.

    Raises:
        ValueError: a name is no field (the nearest is suggested), or a value does not fit.
    """
    nested: dict[str, dict[str, Any]] = {}
    direct: dict[str, Any] = {}
    for name, value in changes.items():
        head, _, rest = name.partition(".")
        if rest:
            nested.setdefault(head, {})[rest] = value
        else:
            direct[head] = value
    check_names(type(config), {**direct, **nested}, prefix)
    for name, inner in nested.items():
        current = direct.get(name, getattr(config, name))
        if current is None:
            current = _default(type(config), name)
        if isinstance(current, TwoTowersConfig):
            # model.text.depth is model.text_depth, model.image.depth model.depth
            named = {field.replace("text.", "text_").rpartition(".")[2]: value for field, value in inner.items()}
            direct[name] = current.replace(**named)
        elif isinstance(current, ViTConfig):
            # model.tokens.patch_size is model.patch_size
            direct[name] = current.replace(**{field.rpartition(".")[2]: value for field, value in inner.items()})
        elif dataclasses.is_dataclass(current):
            direct[name] = replace_dotted(current, inner, f"{prefix}{name}.")
        else:
            raise ValueError(f"{prefix}{name} has no fields of its own: it is {current!r}")
    return dataclasses.replace(config, **direct)  # pyright: ignore[reportArgumentType]


def _default(config_class: type, name: str) -> Any:
    """Returns the default nested config of a field that may also be None."""
    nested = getattr(config_class, "NESTED", {})
    return nested[name]() if name in nested else None


def build(config_class: type[T], values: object, prefix: str = "") -> T:
    """Returns the dataclass that `to_dict` described; the class's NESTED names its nested ones.

    Raises:
        ValueError: a key is no field of it (the nearest is suggested).
    """
    if isinstance(values, config_class):
        return values
    if not isinstance(values, Mapping):
        raise ValueError(f"{prefix.rstrip('.') or config_class.__name__} must be an object of fields, got {values!r}")
    check_names(config_class, values, prefix)
    nested = getattr(config_class, "NESTED", {})
    fields: dict[str, Any] = {}
    for name, value in values.items():
        if name in nested and value is not None:
            fields[name] = build(nested[name], value, f"{prefix}{name}.")
        else:
            fields[name] = frozen(value)
    return config_class(**fields)
