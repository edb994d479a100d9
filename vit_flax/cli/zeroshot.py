"""`vit-flax zeroshot`: zero-shot classification of image files by texts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from vit_flax.cli.image_files import compute, explain_bad
from vit_flax.cli.image_options import add_model_options
from vit_flax.cli.loading import load_model
from vit_flax.cli.options import add_text_options

if TYPE_CHECKING:
    from vit_flax.cli.parser import Commands

EXAMPLE = """example:
  vit-flax zeroshot clip-vit-base-patch32 photo.jpg --labels cat "red car" --template "a photo of a {}"
  vit-flax zeroshot siglip/ *.jpg --labels-file names.txt --json"""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "zeroshot",
        help="classify image files by texts",
        description="Prints the probability of each label for each image: a softmax over the labels (CLIP), or the "
        "sigmoid of each label where the model was trained with a sigmoid loss (SigLIP).",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_model_options(parser)
    parser.add_argument("images", nargs="+", help="image files")
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument("--labels", nargs="+", metavar="TEXT", dest="texts", help="texts of the classes")
    labels.add_argument("--labels-file", metavar="FILE", dest="texts_file", help="the same, one a line")
    add_text_options(parser)
    parser.add_argument("--top", type=int, metavar="N", help="labels to print (default: 5; with --json all)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    if options.top is not None and options.top < 1:
        raise ValueError(f"--top must be at least 1, got {options.top}")
    names = options.texts or read_names(options.texts_file)
    if not all(name.strip() for name in names):
        raise ValueError("a label is empty")
    if double := sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []:
        raise ValueError(f"the label {double[0]!r} is there twice")
    loaded = load_model(options, tower="both")
    classifier = loaded.zero_shot(names, options.templates, options.tokenizer)
    loaded.show_notes()
    embeddings, bad = compute(loaded, "logits", options.images)
    shares = classifier.probabilities(embeddings)
    good = [path for index, path in enumerate(options.images) if index not in bad]
    top = options.top or (len(names) if options.json else min(5, len(names)))
    answers = {}
    for path, row in zip(good, shares, strict=True):
        best = (-row).argsort(kind="stable")[:top]
        answers[path] = [{"label": names[k], "probability": float(row[k])} for k in best]
    if options.json:
        notes = {"notes": loaded.notes} if loaded.notes else {}
        rows = [
            {"image": path, "error": bad[index]} if index in bad else {"image": path, "guesses": answers[path], **notes}
            for index, path in enumerate(options.images)
        ]
        print(json.dumps(rows, indent=1))
    else:
        for path in good:
            print(path)
            for guess in answers[path]:
                print(f"  {guess['probability']:7.2%}  {guess['label']}")
    if bad:
        explain_bad(bad, options.images, "zeroshot")
    return 1 if bad else 0


def read_names(file: str) -> list[str]:
    """Returns the lines of a file, without empty ones.

    Raises:
        ValueError: the file is not UTF-8, or holds no line.
    """
    try:
        names = [line.strip() for line in Path(file).read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not in UTF-8: byte {error.start} cannot be read") from error
    if not names:
        raise ValueError(f"{file}: holds no labels")
    return names
