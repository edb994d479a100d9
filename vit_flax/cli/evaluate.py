"""`vit-flax evaluate`: the accuracy of a checkpoint on labelled images."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_flax.cli.data import add_data_options, open_data
from vit_flax.cli.frozen_features import add_frozen_options, check_frozen_options, run_frozen
from vit_flax.cli.image_options import add_label_option, add_model_options
from vit_flax.cli.loading import load_model
from vit_flax.cli.options import add_text_options, format_table
from vit_flax.cli.retrieval import run_retrieval
from vit_flax.cli.zeroshot import read_names
from vit_flax.preprocessing.label_matching import match_labels

if TYPE_CHECKING:
    from vit_flax.cli.loading import Loaded
    from vit_flax.cli.parser import Commands
    from vit_flax.inference import Predictor
    from vit_flax.train.data.source import Source
    from vit_flax.zero_shot import ZeroShot

EXAMPLE = """example:
  vit-flax evaluate runs/digits/best --data digits
  vit-flax evaluate vit.safetensors --config vit_tiny_patch16_224 --data image_folder:photos --split val
  vit-flax evaluate dinov2-small/ --data image_folder:photos --knn --linear-probe --picture neighbours.png
  vit-flax evaluate clip-vit-base-patch32 --zeroshot --data image_folder:photos --template "a photo of a {}"

`vit-flax list sources` lists the sources."""


def add_parser(commands: Commands) -> None:
    """Adds the command to the parser."""
    parser = commands.add_parser(
        "evaluate",
        help="measure a checkpoint's accuracy",
        description="Runs a checkpoint over the images of a data source: top-1 and top-5 accuracy, in all and per "
        "class. --knn, --linear-probe, --retrieval and --caption-retrieval measure features and need no head.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_data_options(parser)
    add_label_option(parser)
    parser.add_argument("--by-number", action="store_true", help="match labels and classes by number, not by name")
    parser.add_argument(
        "--zeroshot",
        action="store_true",
        help="classify by texts, with a two-tower model: the data's class names, or the lines of --labels",
    )
    parser.add_argument(
        "--caption-retrieval",
        action="store_true",
        help="recall of image-text retrieval, with a two-tower model on images with texts",
    )
    add_text_options(parser)
    add_model_options(parser)
    add_frozen_options(parser)
    parser.set_defaults(run=run)


@dataclasses.dataclass(frozen=True)
class Scores:
    """Correct predictions, by class."""

    correct: np.ndarray  # (classes,) images whose top-1 prediction was right
    correct5: np.ndarray
    count: np.ndarray
    left_out: np.ndarray  # (labels,) images whose label is no class of the model

    @property
    def top1(self) -> float:
        """Top-1 accuracy."""
        return float(self.correct.sum() / max(1, self.count.sum()))

    @property
    def top5(self) -> float:
        """Top-5 accuracy."""
        return float(self.correct5.sum() / max(1, self.count.sum()))


def count_correct(
    predictor: Predictor,
    loader: Iterable[Mapping[str, np.ndarray]],
    numbers: np.ndarray,
    zero_shot: ZeroShot | None = None,
) -> Scores:
    """Returns the scores of a model on a loader's preprocessed batches, whose size is the predictor's.

    `numbers` is the model's class of every label; images of labels that have none (-1) are not counted. With
    `zero_shot` the model is an image tower and the classes are those of the texts.
    """
    classes = predictor.model.config.num_classes if zero_shot is None else len(zero_shot.names)
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
        logits = logits if zero_shot is None else zero_shot.logits(logits)
        own = logits[np.arange(len(rows)), truth][:, None]
        # ties go to the first, as in argmax
        rank = ((logits > own) | ((logits == own) & (np.arange(classes) < truth[:, None]))).sum(1)
        np.add.at(scores.count, truth, 1)
        np.add.at(scores.correct, truth[rank < 1], 1)
        np.add.at(scores.correct5, truth[rank < 5], 1)
    return scores


def _check_options(options: argparse.Namespace) -> None:
    if options.templates and not options.zeroshot:
        raise ValueError("--template needs --zeroshot")
    if options.tokenizer and not (options.zeroshot or options.caption_retrieval):
        raise ValueError("--tokenizer needs --zeroshot or --caption-retrieval")
    if options.by_number and options.zeroshot:
        raise ValueError("--by-number is for a model's own classes, --zeroshot takes the data's: leave one out")


def _zero_shot(options: argparse.Namespace, loaded: Loaded, source: Source) -> ZeroShot:
    """Returns the zero-shot classifier of the data's class names, or of those in --labels."""
    names = list(source.class_names)
    if options.labels:
        names = read_names(options.labels)
        if len(names) != len(source.class_names):
            raise ValueError(f"{options.labels}: {len(names)} names for the data's {len(source.class_names)} classes")
    elif all(name.isdecimal() for name in names):
        loaded.notes.append("the data's classes are called by numbers: --labels FILE names them, one a line")
    return loaded.zero_shot(names, options.templates, options.tokenizer)


def run(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status."""
    _check_options(options)
    is_frozen = check_frozen_options(options)
    if options.caption_retrieval and (is_frozen or options.zeroshot):
        raise ValueError("--caption-retrieval needs images with texts, which have no classes: ask for it alone")
    if options.caption_retrieval:
        return run_retrieval(options)
    if is_frozen and options.zeroshot:
        raise ValueError("--zeroshot compares with texts, k-NN and a linear probe with labelled images: ask for one")
    loaded = load_model(options, tower="both" if options.zeroshot else "image")
    if is_frozen:
        return run_frozen(options, loaded)
    predictor, transform = loaded.predictor, loaded.transform
    config = predictor.model.config
    classes = None if options.zeroshot else loaded.require_classes("evaluate")
    loader = open_data(options, loaded, options.split, classes)
    source = loader.source
    if classes is None:
        zero_shot, numbers = _zero_shot(options, loaded, source), np.arange(len(source.class_names))
    else:
        names = None if options.by_number else transform.class_names
        matching = match_labels(source.class_names, classes, names, transform.class_descriptions)
        loaded.notes.extend(matching.notes)
        zero_shot, numbers = None, matching.numbers
    print(f"... {len(source):,} images of {source.name}", file=sys.stderr)
    loaded.show_notes()
    started = time.perf_counter()
    try:
        scores = count_correct(predictor, loader, numbers, zero_shot)
    finally:
        loader.close()
    seconds = time.perf_counter() - started
    left_out = {source.class_names[label]: int(scores.left_out[label]) for label in np.flatnonzero(scores.left_out)}
    called = {number: name for number, name in zip(numbers, source.class_names, strict=True) if number >= 0}
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
