"""Messages in the spelling of the command line.

The package's messages name arguments as Python takes them, between backticks: pass `num_heads=4`. The command line
replaces them by its options: pass --set num_heads=4.
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Mapping

from vit_flax.config import FAMILIES

_ARGUMENT = re.compile(r"`(\w+)=([^`]*)`")
_NAME = re.compile(r"`(\w+)`")
# Keywords of `vit_flax.load` whose option has a destination of another name.
_DESTINATIONS = {"layout": "source_layout"}
_FIELDS = frozenset(name for family in FAMILIES.values() for name in family.fields)


def spelled(message: str, options: Mapping[str, str], model: str = "") -> str:
    """Returns a message whose Python arguments are replaced by options.

    Args:
        message: text with arguments as `name=value`, between backticks.
        options: the command's options by their destinations.
        model: prefix of a field of a model's config, such as 'model.'.
    """

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        written = options.get(_DESTINATIONS.get(name, name))
        if written is None:
            before = model if name in _FIELDS else ""
            return f"--set {before}{name}={_typed(value, ',')}"
        return f"{written} {_typed(value, 'x')}".rstrip()

    message = _ARGUMENT.sub(option, message)
    return _NAME.sub(lambda found: options.get(found.group(1), found.group()), message)


def options_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Returns the longest spelling of a parser's options by their destinations."""
    return {action.dest: action.option_strings[-1] for action in parser._actions if action.option_strings}


def _typed(value: str, comma: str) -> str:
    """Returns a Python literal as typed on a command line: text without quotes, a tuple without brackets."""
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        literal = None
        if value.startswith("("):  # a tuple of placeholders such as (HEIGHT, WIDTH)
            return comma.join(part.strip() for part in value.strip("()").split(","))
    if isinstance(literal, tuple):
        return comma.join(map(str, literal))
    return shlex.quote(literal) if isinstance(literal, str) else value
