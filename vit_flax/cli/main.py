"""The entry point: a usage error is one line and exit status 2, an internal error exit status 70."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from vit_flax.cli import (
    attention,
    compare,
    convert,
    depth,
    evaluate,
    export,
    features,
    inspect,
    list,
    plan,
    predict,
    push,
    segment,
    train,
    zeroshot,
)
from vit_flax.cli.errors import explain
from vit_flax.cli.parser import Parser
from vit_flax.cli.spelling import options_of, spelled
from vit_flax.cli.startup import hide_absent_accelerators, set_up_process
from vit_flax.cli.version import ShowVersions
from vit_flax.suggestions import suggest

COMMANDS = (
    compare, convert, inspect, train, evaluate, predict, zeroshot, features, attention, depth, segment, export, plan,
    push, list,
)  # fmt: skip
COMPUTING = {
    "compare", "train", "evaluate", "predict", "zeroshot", "features", "attention", "depth", "segment", "export",
}  # fmt: skip
INTERNAL = 70  # EX_SOFTWARE: an internal error, which says nothing about the input
EPILOG = """exit status: 0 done; 1 done, and the answer is no; 2 unusable input; 70 a fault of vit-flax itself
(VIT_FLAX_DEBUG=1 shows the traceback of any error)"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `vit-flax` and returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser, commands = build_parser()
    if arguments and not arguments[0].startswith("-") and arguments[0] not in commands:
        near = suggest(arguments[0], commands, f"there are {', '.join(commands)}")
        parser.error(f"no command {arguments[0]!r}; {near}")
    options, unknown = parser.parse_known_args(arguments)
    command = commands[options.command]
    options.spelling = {**options_of(command), **getattr(options, "elsewhere", {})}
    if unknown:
        command.refuse(unknown)
    try:
        if options.command != "plan":  # which compiles by those libraries
            hide_absent_accelerators()
        if options.command in COMPUTING:
            set_up_process()
        status = options.run(options)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print(f"{command.prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return _leave_quietly()
    except (ValueError, OSError, ImportError) as error:  # ConversionError is a ValueError
        _debug()
        model = "model." if options.command in ("train", "plan") else ""
        print(f"{command.prog}: {spelled(explain(error), options.spelling, model)}", file=sys.stderr)
        return 2
    except Exception as error:
        _debug()
        told = " ".join(f"{type(error).__name__}: {error}".split())
        told = told if len(told) <= 300 else told[:300] + " ..."
        hint = "" if os.environ.get("VIT_FLAX_DEBUG") else "; VIT_FLAX_DEBUG=1 shows the traceback"
        print(f"{command.prog}: internal error: {told}{hint}", file=sys.stderr)
        return INTERNAL


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """Returns the parser of the whole program, and that of each command."""
    parser = Parser(
        prog="vit-flax",
        description="PyTorch's Vision Transformers in Flax, proven equal.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=ShowVersions)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser, commands.choices


def _debug() -> None:
    if os.environ.get("VIT_FLAX_DEBUG"):
        traceback.print_exc()


def _leave_quietly() -> int:
    """Returns the exit status of a process whose output is a closed pipe, as `head` leaves behind."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's flush at exit fails again
    return 141


if __name__ == "__main__":
    sys.exit(main())
