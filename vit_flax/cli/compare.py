"""`vit-flax compare`: shows that a torch model and its Flax conversion agree, or the first diverging component."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vit_flax.cli.options import (
    CHECKPOINT,
    add_checkpoint_options,
    add_tower_option,
    spelled_notes,
    tell_notes,
    wish_of,
)
from vit_flax.convert import holds_text, open_checkpoint

if TYPE_CHECKING:
    from vit_flax.cli.parser import Commands
    from vit_flax.parity.report import Report
    from vit_flax.parity.small_mutation import SmallMutation

LIBRARIES = ("timm", "transformers")
TRUNKS = ("sam", "sam_hq", "vitdet", "sam3", "sam2")
RANDOM = ("clip", "metaclip_2", "siglip", "siglip2", *TRUNKS)
EXAMPLE = """example:
  vit-flax compare                                  the trained digits ViT that ships with the package
  vit-flax compare --steps 50 --html report.html    with more optimiser steps and a page of figures
  vit-flax compare --mutate gelu_tanh               break the Flax side on purpose: must exit with 1
  vit-flax compare --mutate list                    the names of all such errors
  vit-flax compare dinov2-small/                    a checkpoint, as it is loaded here, with the installed transformers
  vit-flax compare clip-vit-base-patch32/           both towers: embeddings, logits per image and per text
  vit-flax compare --random siglip                  a small two-tower model with random weights; sam: a trunk
  vit-flax compare deit.pth --config deit_tiny_patch16_224.fb_in1k      or with timm"""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "compare",
        help="compare a torch model with its Flax conversion",
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
    add_tower_option(parser)
    parser.add_argument(
        "--random",
        choices=RANDOM,
        help="without a checkpoint: a small model of random weights, not the digits",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="optimiser steps to compare (default 10)")
    parser.add_argument(
        "--mutate", metavar="NAME", help="put a deliberate error into the Flax side ('list' lists them)"
    )
    parser.add_argument("--html", metavar="FILE", help="write the report as one self-contained page")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON ('-' for standard output)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    from vit_flax.parity.mutations import MUTATIONS, get_mutation

    small = _small_mutations()
    if options.mutate == "list":
        known = (*MUTATIONS.values(), *small.values())
        width = max(len(mutation.name) for mutation in known)
        for mutation in known:
            print(f"{mutation.name:<{width}}  {mutation.description}")
        return 0
    if options.checkpoint is not None:
        return _run_checkpoint(options)
    given = [name for name in _OF_A_CHECKPOINT if getattr(options, name)]
    if given:
        option = {"source_layout": "layout", "overrides": "set", "source_grid": "source-grid"}.get(given[0], given[0])
        raise ValueError(f"--{option} needs a checkpoint")
    if options.random is not None or options.mutate in small:
        return _run_random(options)
    options.steps = 10 if options.steps is None else options.steps
    if options.steps < 0:
        raise ValueError(f"--steps must not be negative, got {options.steps}")
    mutation = get_mutation(options.mutate, small) if options.mutate else None
    if mutation is not None and mutation.section == "steps" and options.steps < 2:
        raise ValueError(f"mutation {mutation.name} shows in the optimiser steps: pass --steps 2 or more")
    for path in filter(None, (options.html, options.json)):
        if path != "-" and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"{path}: its folder does not exist")

    _use_float64()
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
    "tower", "against", "model", "source_layout", "entry", "config", "overrides", "resample", "source_grid",
)  # fmt: skip


def _small_mutations() -> dict[str, SmallMutation]:
    from vit_flax.parity.stage_mutations import STAGE_MUTATIONS
    from vit_flax.parity.tower_mutations import TOWER_MUTATIONS
    from vit_flax.parity.window_mutations import WINDOW_MUTATIONS

    return {**TOWER_MUTATIONS, **WINDOW_MUTATIONS, **STAGE_MUTATIONS}


def _run_random(options: argparse.Namespace) -> int:
    for name in ("steps", "html"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} applies to the digits ViT, not to small models")
    mutation = None if options.mutate is None else _small_mutations().get(options.mutate)
    if options.mutate is not None and mutation is None:
        raise ValueError(f"--mutate {options.mutate} applies to the digits ViT: leave --random out")
    if mutation is not None and options.random not in (None, mutation.case):
        raise ValueError(f"--mutate {mutation.name} applies to --random {mutation.case}, got {options.random}")
    _check_json(options)
    _use_float64()
    from vit_flax.parity.towers import compare_small_towers
    from vit_flax.parity.trunks import compare_small_trunk

    case = str(options.random if mutation is None else mutation.case)
    compare = compare_small_trunk if case in TRUNKS else compare_small_towers
    return _tell(options, compare(case, mutation))


def _check_json(options: argparse.Namespace) -> None:
    if options.json not in (None, "-") and not Path(options.json).absolute().parent.is_dir():
        raise ValueError(f"{options.json}: its folder does not exist")


def _use_float64() -> None:
    import jax

    jax.config.update("jax_platforms", "cpu")  # float64 decides, which only the CPU always has
    jax.config.update("jax_enable_x64", True)


def _run_checkpoint(options: argparse.Namespace) -> int:
    for name in ("steps", "mutate", "html", "random"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name} applies to the comparison without a checkpoint")
    _check_json(options)
    wish = wish_of(options)
    if options.tower is None and options.against == "timm":
        wish = dataclasses.replace(wish, tower="image")  # timm's models have no text tower
    checkpoint = open_checkpoint(options.checkpoint, wish)
    tell_notes(spelled_notes(checkpoint.notes, options))

    _use_float64()
    from vit_flax.parity.libraries import compare_checkpoint
    from vit_flax.parity.towers import compare_towers
    from vit_flax.reading import read_model

    reading = read_model(checkpoint, wish)
    if not holds_text(reading.layout):
        return _tell(options, compare_checkpoint(reading, options.against, options.model))
    if options.against == "timm":
        raise ValueError("--against timm compares an image tower alone: pass --tower image")
    return _tell(options, compare_towers(reading))


def _tell(options: argparse.Namespace, report: Report) -> int:
    """Prints and writes the report, and returns the exit status."""
    from vit_flax.parity.text import format_report

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
