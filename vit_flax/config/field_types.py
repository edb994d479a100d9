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
    if not _test_of(hint)(value):
        quoted = ""
        if _test_of(hint)("") and _test_of(float)(value):
            quoted = f'; as text it is "{value}", on a command line \'"{value}"\''
        raise ValueError(f"{name} must be {_described(hint)}, got {value!r}{quoted}")


@functools.cache
def _hints(config_class: type[DataclassInstance]) -> dict[str, Any]:
    hints = get_type_hints(config_class)
    return {field.name: hints[field.name] for field in dataclasses.fields(config_class)}


@functools.cache
def _test_of(hint: Any) -> Callable[[object], bool]:
    """Returns the test of a type; importing the presets builds some thousand configs."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        tests = tuple(map(_test_of, arguments))
        return lambda value: any(test(value) for test in tests)
    if origin is tuple and arguments[-1] is Ellipsis:
        of_one = _test_of(arguments[0])
        return lambda value: isinstance(value, tuple) and all(map(of_one, value))
    if origin is tuple:
        parts = tuple(map(_test_of, arguments))
        return lambda value: (
            isinstance(value, tuple)
            and len(value) == len(parts)
            and all(test(part) for test, part in zip(parts, value, strict=True))
        )
    if hint in (int, float):
        numbers = (int, float) if hint is float else int
        return lambda value: isinstance(value, numbers) and not isinstance(value, bool)
    if hint is Any:
        return lambda value: True
    kind = origin or hint
    return lambda value: isinstance(value, kind)


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
