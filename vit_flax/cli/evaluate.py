"""`vit-flax evaluate`: the accuracy of a checkpoint on labelled images."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_flax.cli.images import add_label_option, add_model_options, load_model
from vit_flax.cli.options import format_table
from vit_flax.preprocessing.label_matching import match_labels

if TYPE_CHECKING:
    from vit_flax.cli.parser import Commands
    from vit_flax.inference import Predictor

EXAMPLE = """example:
  vit-flax evaluate runs/digits/best --data digits
  vit-flax evaluate vit.safetensors --config vit_tiny_patch16_224 --data image_folder:photos --split val

`vit-flax list sources` lists the sources."""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a checkpoint's accuracy",
        description="Runs a checkpoint over the images of a data source: top-1, top-5, and each class.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--data", required=True, metavar="SOURCE[:PATH]", help="where the images come from")
    parser.add_argument("--split", default="test", help="train, val or test (default test)")
    parser.add_argument("--image-key", help="column or feature of the image, where its name is unusual")
    parser.add_argument("--label-key", help="column or feature of the label, where its name is unusual")
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="processes that read images (default 0)")
    parser.add_argument(
        "--max-bad-share", type=float, default=0.01, metavar="X", help="stop when more cannot be read (default 0.01)"
    )
    add_label_option(parser)
    parser.add_argument("--by-number", action="store_true", help="label 0 is class 0, whatever both are called")
    add_model_options(parser)
    parser.set_defaults(run=run)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model got right, by class."""

    correct: np.ndarray  # (classes,) images whose first guess was right
    correct5: np.ndarray
    count: np.ndarray
    left_out: np.ndarray  # (labels,) images whose label is no class of the model

    @property
    def top1(self) -> float:
        """Share of the images whose first guess was right."""
        return float(self.correct.sum() / max(1, self.count.sum()))

    @property
    def top5(self) -> float:
        """Share of the images whose label was among the first five guesses."""
        return float(self.correct5.sum() / max(1, self.count.sum()))


def count_correct(predictor: Predictor, loader: Iterable[Mapping[str, np.ndarray]], numbers: np.ndarray) -> Scores:
    """Returns the scores of a model on a loader's normalised batches, whose size is the predictor's.

    `numbers` is the model's class of every label; images of labels that have none (-1) are not counted.
    """
    classes = predictor.model.config.num_classes
    scores = Scores(*(np.zeros(size, np.int64) for size in (classes, classes, classes, len(numbers))))
    labels: collections.deque[np.ndarray] = collections.deque()

    def images() -> Any:
        for batch in loader:
            known = batch["label"] >= 0
            labels.append(np.where(known, numbers[batch["label"]], -1))
            np.add.at(scores.left_out, batch["label"][known & (labels[-1] < 0)], 1)
            yield from batch["image"]

    for logits in predictor.stream("logits", images()):
        truth = labels.popleft()
        rows = np.flatnonzero(truth >= 0)
        truth, logits = truth[rows], logits[rows].astype(np.float32)
        own = logits[np.arange(len(rows)), truth][:, None]
        # of equal logits the first wins, as in argmax
        rank = ((logits > own) | ((logits == own) & (np.arange(classes) < truth[:, None]))).sum(1)
        np.add.at(scores.count, truth, 1)
        np.add.at(scores.correct, truth[rank < 1], 1)
        np.add.at(scores.correct5, truth[rank < 5], 1)
    return scores


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    loaded = load_model(options)
    predictor, transform = loaded.predictor, loaded.transform
    config, classes = predictor.model.config, loaded.require_classes("evaluate")

    from vit_flax.train.config import DataConfig
    from vit_flax.train.data import open_source
    from vit_flax.train.data.loader import make_loader

    name, _, path = options.data.partition(":")
    if Path(options.data).is_dir():
        raise ValueError(f"--data {options.data} is a folder; did you mean --data image_folder:{options.data}?")
    data = DataConfig(
        name=name, path=path or None, batch_size=options.batch_size, workers=options.workers,
        image_key=options.image_key, label_key=options.label_key, max_bad_share=options.max_bad_share,
    )  # fmt: skip
    source: Any = open_source(data, options.split, config.in_chans, classes)
    source.decoding = transform.decoding
    names = None if options.by_number else transform.class_names
    if transform.varies:
        raise ValueError(f"{loaded.origin} does not bring images to one size: --preprocessing FILE says how to")
    matching = match_labels(source.class_names, classes, names, transform.class_descriptions)
    loaded.notes.extend(matching.notes)
    loader = make_loader(
        source, data, image_size=config.image_size, channels=config.in_chans, train=False, preprocessing=transform
    )
    print(f"... {len(source):,} images of {source.name}", file=sys.stderr)
    loaded.show_notes()
    started = time.perf_counter()
    try:
        scores = count_correct(predictor, loader, matching.numbers)
    finally:
        loader.close()
    seconds = time.perf_counter() - started
    left_out = {source.class_names[label]: int(scores.left_out[label]) for label in np.flatnonzero(scores.left_out)}
    called = {number: name for number, name in zip(matching.numbers, source.class_names, strict=True) if number >= 0}
    rows = [(number, called[number]) for number in np.flatnonzero(scores.count)]
    bad = {source.describe(index): reason for index, reason in loader.bad.items()}
    if options.json:
        per_class = [
            {"name": name, "label": int(k), "count": int(scores.count[k]), "correct": int(scores.correct[k]),
             "correct5": int(scores.correct5[k])} for k, name in rows
        ]  # fmt: skip
        answer = {"source": source.name, "count": int(scores.count.sum()), "top1": scores.top1, "top5": scores.top5}
        transformed = {**transform.to_dict(), "image_size": list(config.image_size), "origin": loaded.origin}
        answer |= {"classes": per_class, "bad": bad, "transform": transformed, "seconds": seconds}
        answer |= {"left_out": left_out, "notes": loaded.notes}
        print(json.dumps(answer, indent=1))
        return 0
    table = [
        (name, f"{scores.count[k]:,}", f"{scores.correct[k] / scores.count[k]:.2%}",
         f"{scores.correct5[k] / scores.count[k]:.2%}") for k, name in rows
    ]  # fmt: skip
    print(format_table([("class", "images", "top-1", "top-5"), *table]))
    rest = f", {len(bad)} could not be read" if bad else ""
    if left_out:
        rest += f"; {sum(left_out.values()):,} of classes that the model does not know are left out ("
        rest += ", ".join(f"{name} {count:,}" for name, count in left_out.items()) + ")"
    print(f"\ntop-1 {scores.top1:.2%}, top-5 {scores.top5:.2%} of {int(scores.count.sum()):,} images{rest}")
    return 0
