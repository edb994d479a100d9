"""`vit-flax inspect`: a checkpoint's layout and config, and the parameter of each tensor."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from vit_flax.cli.options import (
    CHECKPOINT,
    add_checkpoint_options,
    add_tower_option,
    format_table,
    spelled_notes,
    tell_notes,
    wish_of,
)
from vit_flax.cli.spelling import spelled
from vit_flax.convert import open_checkpoint

if TYPE_CHECKING:
    from vit_flax.cli.parser import Commands

EXAMPLE = """example:
  vit-flax inspect model.safetensors
  vit-flax inspect tutorial.pth --set num_heads=4 --set image_size=60,100"""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "inspect",
        help="show a checkpoint's layout, config and tensors",
        description="Shows layout and evidence, every field of the config with its origin, and every tensor's fate. "
        "Exit status 0: it can be loaded; 1: it cannot (what is missing is listed); 2: not a readable checkpoint.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", help=CHECKPOINT)
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    add_checkpoint_options(parser)
    add_tower_option(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    wish = wish_of(options)
    checkpoint = open_checkpoint(options.source, wish)

    import jax

    jax.config.update("jax_platforms", "cpu")
    from vit_flax.reading import read_model

    reading = read_model(checkpoint, wish)
    found = reading.to_dict()
    found["problems"] = [spelled(problem, options.spelling) for problem in found["problems"]]
    found["notes"] = spelled_notes(found["notes"], options)
    tell_notes(found["notes"])
    if options.json:
        print(json.dumps(found, indent=1))
        return 1 if found["problems"] else 0
    print(f"file        {found['source']}")
    print(f"layout      {found['layout']} ({found['evidence']})")
    print(f"parameters  {found['parameters']:,} in {len(found['tensors'])} tensors")
    if found["no_tensors"]:
        others = [f"{name} ({kind})" for name, kind in found["no_tensors"].items()]
        print(f"left out    {', '.join(others[:10])}{' ...' if len(others) > 10 else ''}")
    if found["config"]:
        rows = [(name, json.dumps(value), found["origins"][name]) for name, value in found["config"].items()]
        print("\n" + format_table([("config", "value", "origin"), *rows]))
    fates = [
        (t["name"], " x ".join(map(str, t["shape"])), spelled(t["fate"], options.spelling)) for t in found["tensors"]
    ]
    print("\n" + format_table([("tensor", "shape", "fate"), *fates]))
    if found["problems"]:
        print("\ncannot be loaded like this:")
        print("\n".join(f"  {problem}" for problem in found["problems"]))
        return 1
    return 0
