"""Types of a config's fields against their annotations: text such as 'false' would count as true."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Rules = tuple[tuple[str, Any], ...]

_NAMES = {bool: "True or False", int: "an integer", float: "a number", str: "text", types.NoneType: "None"}
_PLURALS = {int: "integers", float: "numbers", str: "texts"}


def check_types(config: DataclassInstance, prefix: str = "") -> None:
    """Raises ValueError for the first field whose value is not of the annotated type; an integer is a number, too."""
    for name, hint in _hints(type(config)).items():
        _check(prefix + name, getattr(config, name), hint)


def check_arguments(function: Callable[..., object], arguments: Mapping[str, object]) -> None:
    """Raises ValueError for the first argument that is not of the type that the function's signature says."""
    hints = get_type_hints(function)
    for name, value in arguments.items():
        _check(name, value, hints[name])


def _check(name: str, value: object, hint: Any) -> None:
    if not _is_of(value, hint):
        quoted = ""
        if _is_of("", hint) and _is_of(value, float):
            quoted = f'; as text it is "{value}", on a command line \'"{value}"\''
        raise ValueError(f"{name} must be {_described(hint)}, got {value!r}{quoted}")


@functools.cache
def _hints(config_class: type[DataclassInstance]) -> dict[str, Any]:
    hints = get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


def _is_of(value: object, hint: Any) -> bool:
    arguments = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return any(_is_of(value, one) for one in arguments)
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        wanted = (arguments[0],) * len(value) if arguments[-1] is Ellipsis else arguments
        return len(value) == len(wanted) and all(map(_is_of, value, wanted))
    if hint in (int, float):
        return isinstance(value, int | float if hint is float else int) and not isinstance(value, bool)
    return hint is Any or isinstance(value, get_origin(hint) or hint)


def _described(hint: Any) -> str:
    arguments = get_args(hint)
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_described, arguments))
    if hint == Rules:
        return "(pattern, value) pairs"
    if get_origin(hint) is tuple:
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"{count}{_PLURALS[arguments[0]]}"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))
