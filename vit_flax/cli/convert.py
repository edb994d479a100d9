"""`vit-flax convert`: rewrites a checkpoint in another layout or file format."""

from __future__ import annotations

import argparse
import json
from typing import Any

from vit_flax.cli.options import add_checkpoint_options, tell_notes, wish_of
from vit_flax.cli.parser import known_layout
from vit_flax.convert import open_checkpoint

EXAMPLE = """example:
  vit-flax convert tutorial.pth tutorial.safetensors --set num_heads=4 --set image_size=60,100
  vit-flax convert dinov2/ small.safetensors --set image_size=224 --resample bicubic
  vit-flax convert timm.safetensors vit.npz --config vit_base_patch16_224.augreg_in21k --layout torchvision"""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "convert",
        help="rewrite a checkpoint in another layout or format",
        description="Reads a checkpoint, checks that every tensor has its place, and writes it bit for bit.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("source", help=".safetensors, .npz, .pth or .bin file, or a folder")
    parser.add_argument("target", help="file to write (its suffix says how), or a folder (no suffix)")
    parser.add_argument(
        "--layout", type=known_layout, metavar="LAYOUT", help="layout to write (default: the one that was read)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_checkpoint_options(parser, layout="--from")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    wish = wish_of(options)
    checkpoint = open_checkpoint(options.source, wish)  # before JAX is imported: a bad file is told at once
    tell_notes(checkpoint)

    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)  # so that float64 tensors stay what they are
    from vit_flax.pretrained import save
    from vit_flax.reading import read_model

    reading = read_model(checkpoint, wish)
    target = options.layout or reading.layout.name
    save(options.target, *reading.build(), target)
    if options.json:
        found = {"source": checkpoint.source, "target": options.target, "tensors": len(checkpoint.shapes)}
        found |= {"from": reading.layout.name, "to": target, "notes": list(checkpoint.notes)}
        print(json.dumps(found, indent=1))
    else:
        print(f"wrote {options.target}: {len(checkpoint.shapes)} tensors from {reading.layout.name} to {target}")
    return 0
