"""`vit-flax compare`: shows that a torch model and its Flax twin agree, or the first component that diverges."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vit_flax.cli.options import CHECKPOINT, add_checkpoint_options, spelled_notes, tell_notes, wish_of
from vit_flax.convert import open_checkpoint

if TYPE_CHECKING:
    from vit_flax.cli.parser import Commands

LIBRARIES = ("timm", "transformers")
EXAMPLE = """example:
  vit-flax compare                                  the trained digits ViT that ships with the package
  vit-flax compare --steps 50 --html report.html    with more optimiser steps and a page of pictures
  vit-flax compare --mutate gelu_tanh               break the Flax side on purpose: must exit with 1
  vit-flax compare --mutate list                    the names of all such errors
  vit-flax compare dinov2-small/                    a checkpoint, as it is loaded here, with the installed transformers
  vit-flax compare deit.pth --config deit_tiny_patch16_224.fb_in1k      or with timm"""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "compare",
        help="compare a torch model with its Flax twin",
        description="Converts a torch model and compares components, gradients and optimiser steps, in float64 and "
        "float32. With a checkpoint: compares what is loaded from it, components and outputs, with the installed timm "
        "or transformers model of the same weights. Exit status 0: they agree; 1: they differ; 2: unusable input.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", nargs="?", help=CHECKPOINT)
    parser.add_argument("--against", choices=LIBRARIES, help="library (default: the one that the layout belongs to)")
    parser.add_argument("--model", metavar="NAME", help="timm's name of the model (default: that of --config)")
    add_checkpoint_options(parser)
    parser.add_argument("--steps", type=int, metavar="N", help="optimiser steps to compare (default 10)")
    parser.add_argument(
        "--mutate", metavar="NAME", help="put a deliberate error into the Flax side ('list' lists them)"
    )
    parser.add_argument("--html", metavar="FILE", help="write one self-contained page")
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON ('-' for standard output)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from vit_flax.parity.mutations import MUTATIONS, get_mutation

    if options.mutate == "list":
        width = max(map(len, MUTATIONS))
        for mutation in MUTATIONS.values():
            print(f"{mutation.name:<{width}}  {mutation.description}")
        return 0
    if options.checkpoint is not None:
        return _run_checkpoint(options)
    given = [name for name in _OF_A_CHECKPOINT if getattr(options, name)]
    if given:
        option = {"source_layout": "layout", "overrides": "set", "source_grid": "source-grid"}.get(given[0], given[0])
        raise ValueError(f"--{option} needs a checkpoint")
    options.steps = 10 if options.steps is None else options.steps
    if options.steps < 0:
        raise ValueError(f"--steps must not be negative, got {options.steps}")
    mutation = get_mutation(options.mutate) if options.mutate else None
    if mutation is not None and mutation.section == "steps" and options.steps < 2:
        raise ValueError(f"mutation {mutation.name} shows in the optimiser steps: pass --steps 2 or more")
    for path in filter(None, (options.html, options.json)):
        if path != "-" and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"{path}: its folder does not exist")

    import jax

    jax.config.update("jax_platforms", "cpu")  # float64 decides, which only the CPU always has
    jax.config.update("jax_enable_x64", True)
    from vit_flax.parity.digits import compare_digits
    from vit_flax.parity.page import format_page
    from vit_flax.parity.text import format_report

    report = compare_digits(options.steps, mutation, say=lambda text: print(f"... {text}", file=sys.stderr))
    if options.json != "-":
        print(format_report(report))
    if options.json:
        _write(options.json, report.to_json() + "\n")
    if options.html:
        _write(options.html, format_page(report))
    return 0 if report.agrees else 1


_OF_A_CHECKPOINT = (
    "against", "model", "source_layout", "entry", "config", "overrides", "resample", "source_grid",
)  # fmt: skip


def _run_checkpoint(options: argparse.Namespace) -> int:
    for name in ("steps", "mutate", "html"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} is of the comparison without a checkpoint")
    if options.json not in (None, "-") and not Path(options.json).absolute().parent.is_dir():
        raise ValueError(f"{options.json}: its folder does not exist")
    wish = wish_of(options)
    checkpoint = open_checkpoint(options.checkpoint, wish)
    tell_notes(spelled_notes(checkpoint.notes, options))

    import jax

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    from vit_flax.parity.libraries import compare_checkpoint
    from vit_flax.parity.text import format_report
    from vit_flax.reading import read_model

    report = compare_checkpoint(read_model(checkpoint, wish), options.against, options.model)
    if options.json != "-":
        print(format_report(report))
    if options.json:
        _write(options.json, report.to_json() + "\n")
    return 0 if report.agrees else 1


def _write(path: str, text: str) -> None:
    if path == "-":
        print(text, end="")
        return
    Path(path).write_text(text, "utf-8")
    print(f"wrote {path}", file=sys.stderr)
