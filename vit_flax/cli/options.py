"""Options of several commands."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

from vit_flax.cli.parser import known_layout
from vit_flax.cli.spelling import spelled
from vit_flax.convert import TOWERS, ConversionError, Wish
from vit_flax.convert.wish import preset_or_file

_T = TypeVar("_T")
CHECKPOINT = "weights: a file (.safetensors, .npz, .msgpack, .pth, .pt, .bin, .ckpt), a folder or hf://owner/name"


def add_checkpoint_options(parser: argparse.ArgumentParser, layout: str = "--layout") -> None:
    """Adds the options of reading a checkpoint; `layout` is the name of the layout's option."""
    parser.add_argument(
        layout,
        type=known_layout,
        metavar="LAYOUT",
        dest="source_layout",
        help="layout of the tensors (default: told by their names); `vit-flax list layouts` lists them",
    )
    parser.add_argument("--entry", help="weights to take where a training checkpoint holds several, such as teacher")
    parser.add_argument(
        "--config", type=_config, metavar="PRESET", help="preset, or a config.json, that tells what tensors cannot"
    )
    parser.add_argument("--resample", metavar="MODE", help="how position embeddings and patch kernels are resized")
    parser.add_argument(
        "--source-grid",
        type=height_and_width,
        metavar="HxW",
        help="the checkpoint's grid of patches, where that is not square",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        type=assignment,
        metavar="FIELD=VALUE",
        dest="overrides",
        help="a field of the config, for example num_heads=4 or image_size=60,100; may be repeated",
    )


def wish_of(options: argparse.Namespace) -> Wish:
    """Returns the wish of the options of `add_checkpoint_options` and `add_tower_option`."""
    return Wish(
        layout=options.source_layout,
        config=options.config,
        overrides=dict(options.overrides),
        entry=options.entry,
        resample=options.resample,
        source_grid=options.source_grid,
        tower=getattr(options, "tower", "image"),
    )


def add_tower_option(parser: argparse.ArgumentParser) -> None:
    """Adds the option of the towers to read; commands without it read the image tower alone."""
    parser.add_argument("--tower", choices=TOWERS, help="of a two-tower checkpoint (default: both)")


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of prompt templates and the tokeniser."""
    parser.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        dest="templates",
        help="prompt in which {} is a label; embeddings of several are averaged (default 'a photo of a {}')",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="PLACE",
        help="folder with a tokeniser's files, sentencepiece file or hf://owner/name (default: beside the checkpoint)",
    )


def preset_of(options: argparse.Namespace) -> str | None:
    """Returns the name of the preset that --config gives; None where it is a file, or absent."""
    return options.config if isinstance(options.config, str) else None


def _config(text: str) -> str | dict[str, object]:
    """Returns a preset's name unchanged, or the contents of a .json file."""
    try:
        return preset_or_file(text)
    except ConversionError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def spelled_notes(notes: Iterable[str], options: argparse.Namespace) -> list[str]:
    """Returns a checkpoint's notes in the command's spelling of options."""
    return [spelled(note, options.spelling) for note in notes]


def tell_notes(notes: Iterable[str]) -> None:
    """Prints a checkpoint's notes to stderr: what was left out, cast or applied."""
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def height_and_width(text: str) -> tuple[int, int]:
    """Parses HEIGHTxWIDTH."""
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal() and int(height) and int(width)):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form HEIGHTxWIDTH, for example 14x14")
    return int(height), int(width)


def numbers(text: str) -> tuple[float, ...]:
    """Parses comma-separated numbers."""
    return _separated(text, float)


def whole_numbers(text: str) -> tuple[int, ...]:
    """Parses comma-separated integers."""
    return _separated(text, int)


def _separated(text: str, kind: Callable[[str], _T]) -> tuple[_T, ...]:
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not numbers with commas between them") from None


_JSON_WORDS = {"true": "True", "false": "False", "null": "None"}


def assignment(text: str) -> tuple[str, object]:
    """Parses FIELD=VALUE, a Python literal, JSON's true, false or null, or a word."""
    name, equals, value = text.partition("=")
    if not equals or not name.replace(".", "_").isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form FIELD=VALUE")
    try:
        return name, ast.literal_eval(_JSON_WORDS.get(value, value))
    except (ValueError, SyntaxError):
        return name, value  # a word such as hardswish


def format_table(rows: list[tuple[str, ...]]) -> str:
    """Returns rows of text as aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
