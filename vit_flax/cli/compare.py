"""`vit-flax compare`: shows that a torch model and its Flax twin are the same, or where they part."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

EXAMPLE = """example:
  vit-flax compare                                  the trained digits ViT that ships with the package
  vit-flax compare --steps 50 --html report.html    with more optimiser steps and a page of pictures
  vit-flax compare --mutate gelu_tanh               break the Flax side on purpose: must exit with 1
  vit-flax compare --mutate list                    the names of all such errors"""


def add_parser(commands: Any) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "compare",
        help="compare a torch model with its Flax twin",
        description="Converts a torch model and compares components, gradients and optimiser steps, in float64 and "
        "float32. Exit status 0: they agree; 1: they differ; 2: unusable input.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="optimiser steps to compare (default 10)")
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
    if options.steps < 0:
        raise ValueError(f"--steps must not be negative, got {options.steps}")
    mutation = get_mutation(options.mutate) if options.mutate else None
    if mutation is not None and mutation.section == "steps" and options.steps < 2:
        raise ValueError(f"mutation {mutation.name} shows in the optimiser steps: pass --steps 2 or more")
    for path in filter(None, (options.html, options.json)):
        if path != "-" and not Path(path).absolute().parent.is_dir():
            raise ValueError(f"{path}: its folder does not exist")

    import jax

    jax.config.update("jax_platforms", "cpu")  # float64 decides, and only the CPU has it everywhere
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


def _write(path: str, text: str) -> None:
    if path == "-":
        print(text, end="")
        return
    Path(path).write_text(text, "utf-8")
    print(f"wrote {path}", file=sys.stderr)
