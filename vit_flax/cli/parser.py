"""An argparse parser with one-line errors that say what to type instead."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from vit_flax.cli.spelling import options_of
from vit_flax.config import PlainViTConfig
from vit_flax.suggestions import nearest

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # of `add_subparsers`


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that prints no usage before an error."""

    def error(self, message: str) -> NoReturn:
        """Prints one line and ends the program with exit status 2."""
        more = "" if message.endswith("?") else f"; see {self.prog} --help"
        if message.startswith("argument --") and message.endswith("expected one argument"):
            name = message.split()[1].rstrip(":").split("/")[-1]
            more = f"; one that begins with a minus is joined to it: {name}=-1{more}"
        self.exit(2, f"{self.prog}: {' '.join(message.split())}{more}\n")

    def refuse(self, arguments: Sequence[str]) -> NoReturn:
        """Ends the program with an error about arguments that the command does not take."""
        first = arguments[0]
        name, _, value = first.partition("=")
        if not first.startswith("-"):
            hint = self._as_field(name, value) if value else ""
            self.error(f"{first!r} is one argument too many{hint}")
        following = arguments[1] if len(arguments) > 1 and not arguments[1].startswith("-") else "VALUE"
        near = nearest(name, self._option_string_actions, cutoff=0.75)
        hint = f"; did you mean {near[0]}?" if near else ""
        field = name.lstrip("-").replace("-", "_")
        self.error(f"no option {name}{self._as_field(field, value or following) or hint}")

    def _as_field(self, name: str, value: str) -> str:
        """Returns the hint that a field of a config goes after --set; '' where `name` is no field."""
        options = options_of(self)
        field = name if "overrides" in options and name in PlainViTConfig.fields else None
        if "changes" in options:  # train's, for which other libraries have other names
            from vit_flax.train.config import TrainConfig
            from vit_flax.train.config.nested import suggest
            from vit_flax.train.config.synonyms import SYNONYMS

            near = suggest(TrainConfig, name)
            field = next((path for path in near if path.split(".")[-1] == name or name in SYNONYMS), None)
        return f"; did you mean --set {field}={value}?" if field else ""


def known_layout(text: str) -> str:
    """Returns the name of a layout.

    Raises:
        argparse.ArgumentTypeError: there is no such layout; the message suggests the nearest.
    """
    from vit_flax.convert import ConversionError, get_layout

    try:
        return get_layout(text).name
    except ConversionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
