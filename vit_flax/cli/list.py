"""`vit-flax list`: the names that other commands take."""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_flax.cli.options import format_table

if TYPE_CHECKING:
    from vit_flax.cli.parser import Commands

EXAMPLE = """example:
  vit-flax list presets dinov2
  vit-flax list layouts
  vit-flax list recipes --json"""

Row = dict[str, object]


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "list",
        help="list presets, layouts, recipes or sources",
        description="Lists the names that other commands take, with their descriptions. Exit status 0: found; 1: no "
        "row has these words; 2: unusable input.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "what",
        choices=tuple(ROWS),
        help="presets: for --config and plan; layouts: for --layout and --from; recipes: for train; sources: for "
        "evaluate --data and train --set data.name",
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="only rows that contain all these words")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    rows = [row for row in ROWS[options.what]() if _has(row, options.words)]
    if options.json:
        print(json.dumps(rows, indent=1))
    elif rows:
        print(format_table([tuple(rows[0]), *(tuple(map(_cell, row.values())) for row in rows)]))
    if not rows:
        print(f"vit-flax list: none of the {options.what} has {' and '.join(options.words)} in it", file=sys.stderr)
    return 0 if rows else 1


def _has(row: Row, words: list[str]) -> bool:
    text = " ".join(map(str, row.values())).lower()
    return all(word.lower() in text for word in words)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return " x ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _presets() -> list[Row]:
    from vit_flax.presets import PRESETS, TWO_TOWERS

    return [
        {
            "name": name,
            "image_size": preset.config.image_size,
            "patch_size": preset.config.fields().get("patch_size"),  # soft splits have none
            "embed_dim": preset.config.embed_dim,
            "depth": preset.config.depth,
            "num_heads": preset.config.num_heads,
            "num_classes": preset.config.num_classes,
            "source": preset.source,
        }
        for name, preset in (*PRESETS.items(), *TWO_TOWERS.items())
    ]


def _layouts() -> list[Row]:
    from vit_flax.convert import LAYOUTS

    return [{"name": name, "description": layout.description} for name, layout in LAYOUTS.items()]


def _recipes() -> list[Row]:
    from vit_flax.recipes import RECIPES

    rows = []
    for name, recipe in RECIPES.items():
        parameters = inspect.signature(recipe).parameters.values()
        needed = [p.name for p in parameters if p.default is p.empty]
        takes = [p.name for p in parameters if p.default is not p.empty]
        text = (inspect.getdoc(recipe) or "").splitlines()[0]
        rows.append({"name": name, "needs": ", ".join(needed), "takes": ", ".join(takes), "description": text})
    return rows


def _sources() -> list[Row]:
    from vit_flax.train.data import SOURCES

    return [{"name": name, "description": first_line(module)} for name, module in SOURCES.items()]


def first_line(module: str) -> str:
    """Returns the first line of a module's docstring without an import, which may need a library of its own."""
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    return (ast.get_docstring(ast.parse(Path(spec.origin).read_text("utf-8"))) or "").splitlines()[0]


ROWS: dict[str, Callable[[], list[Row]]] = {
    "presets": _presets,
    "layouts": _layouts,
    "recipes": _recipes,
    "sources": _sources,
}
