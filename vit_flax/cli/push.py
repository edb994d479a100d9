"""`vit-flax push`: uploads a folder of weights to a Hugging Face hub, with a model card."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_flax.cli.parser import Commands

EXAMPLE = """example:
  vit-flax push runs/mine/best me/my-vit --licence apache-2.0
  vit-flax push runs/mine/best me/my-vit --card        the card alone, to read before anything is sent

A parity.json in the folder (vit-flax compare FOLDER --json FOLDER/parity.json) becomes a section of the card; a
README.md in the folder is kept. The access token is that of `hf auth login` or HF_TOKEN; HF_ENDPOINT names another
hub."""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "push",
        help="upload weights to a Hugging Face hub, with a model card",
        description="Uploads a folder of weights, with a card of its config, preprocessing, training and parity.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="weights as convert or train writes them")
    parser.add_argument("repository", help="owner/name on the hub; created if there is none")
    parser.add_argument("--licence", metavar="NAME", help="the hub's name of the weights' licence, such as apache-2.0")
    parser.add_argument("--private", action="store_true", default=None, help="a new repository is private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to upload to (default: main)")
    parser.add_argument("--card", action="store_true", help="print the model card and upload nothing")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from vit_flax.hub import push_to_hub
    from vit_flax.model_card import model_card

    if options.card:
        print(model_card(Path(options.folder), options.repository, options.licence), end="")
        return 0
    address = push_to_hub(
        options.folder,
        options.repository,
        licence=options.licence,
        private=options.private,
        revision=options.revision,
    )
    print(json.dumps({"repository": options.repository, "commit": address}) if options.json else f"uploaded: {address}")
    return 0
