"""Parses the command line and turns errors of use into one line and exit status 2."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vit_flax.cli import attention, compare, convert, evaluate, features, inspect, plan, predict, train
from vit_flax.cli.runtime import prepare

COMMANDS = (compare, convert, inspect, train, evaluate, predict, features, attention, plan)
COMPUTING = {"compare", "train", "evaluate", "predict", "features", "attention"}
# Libraries that come with an extra.
EXTRAS: dict[str, str] = dict.fromkeys(("optax", "grain", "orbax", "tensorboardX", "matplotlib", "sklearn"), "train")
EXTRAS |= {"PIL": "images", "datasets": "datasets", "pyarrow": "datasets", "array_record": "datasets", "torch": "torch"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `vit-flax` and returns its exit status: 0 done, 1 done and the answer is no, 2 unusable input."""
    parser = argparse.ArgumentParser(
        prog="vit-flax", description="PyTorch's Vision Transformers in Flax, proven equal.", allow_abbrev=False
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        if options.command in COMPUTING:
            prepare()
        return options.run(options)
    except (ValueError, OSError, ImportError) as error:  # ConversionError is a ValueError
        lines = _explain(error).splitlines() or [type(error).__name__]
        print(f"vit-flax {options.command}: {lines[0]}", file=sys.stderr)
        for line in lines[1:]:
            print(line, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"vit-flax {options.command}: interrupted", file=sys.stderr)
        return 130


def _explain(error: Exception) -> str:
    """Returns the error's text; for a library that is not installed, how to get it; for a file, its name first."""
    if isinstance(error, ModuleNotFoundError) and str(error).startswith("No module named"):
        library = (error.name or "").split(".")[0]
        if library in EXTRAS:
            return f"{library} is not installed: pip install 'vit-linen[{EXTRAS[library]}]'"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
