"""`vit-flax --version`: this package's version and those of the libraries that its figures depend on."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from importlib import metadata

import vit_flax

# distributions by their usual names, in the report's order
LIBRARIES = ("jax", "jaxlib", "flax", "numpy", "optax", "torch", "timm", "transformers", "libtpu", "jax-cuda12-plugin")


def versions() -> dict[str, str]:
    """Returns the version of every installed library, importing none."""
    found = {"vit-flax": vit_flax.__version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


class ShowVersions(argparse.Action):
    """Prints the versions and ends the program."""

    def __init__(self, option_strings: Sequence[str], dest: str, **_: object) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print the versions of vit-flax, jax, flax, torch ...")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Ends the program with exit status 0."""
        first, *others = versions().items()
        others = ", ".join(f"{name} {version}" for name, version in others)
        print(f"{first[0]} {first[1]} ({others})")
        parser.exit(0)
