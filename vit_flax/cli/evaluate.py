"""`vit-flax evaluate`: the accuracy of a checkpoint on labelled images."""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import sys
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_flax.cli.images import add_model_options, load_model
from vit_flax.cli.options import format_table

if TYPE_CHECKING:
    from vit_flax.inference import Predictor

EXAMPLE = """example:
  vit-flax evaluate runs/digits/best --data digits
  vit-flax evaluate vit.safetensors --config vit_tiny_patch16_224 --data image_folder:photos --split val

`vit-flax list sources` lists the sources."""


def add_parser(commands: Any) -> None:
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
    add_model_options(parser)
    parser.set_defaults(run=run)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What a model got right, by class."""

    correct: np.ndarray  # (classes,) images whose first guess was right
    correct5: np.ndarray
    count: np.ndarray

    @property
    def top1(self) -> float:
        """Share of the images whose first guess was right."""
        return float(self.correct.sum() / max(1, self.count.sum()))

    @property
    def top5(self) -> float:
        """Share of the images whose label was among the first five guesses."""
        return float(self.correct5.sum() / max(1, self.count.sum()))


def count_correct(predictor: Predictor, loader: Any) -> Scores:
    """Returns the scores of a model on a loader's batches, whose size is the predictor's."""
    from vit_flax.preprocessing.evaluation import normalise

    assert predictor.transform is not None
    mean, std = predictor.transform.mean, predictor.transform.std
    classes = predictor.model.config.num_classes
    scores = Scores(*(np.zeros(classes, np.int64) for _ in range(3)))
    labels: collections.deque[np.ndarray] = collections.deque()

    def images() -> Any:
        for batch in loader:
            labels.append(batch["label"])
            yield from normalise(batch["image"], mean, std)

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
    config = predictor.model.config
    if not config.num_classes:
        raise ValueError(f"{options.checkpoint}: has no head, so there is nothing to evaluate")

    from vit_flax.train.config import DataConfig
    from vit_flax.train.data import open_source
    from vit_flax.train.data.loader import make_loader

    name, _, path = options.data.partition(":")
    data = DataConfig(
        name=name, path=path or None, batch_size=options.batch_size, workers=options.workers,
        image_key=options.image_key, label_key=options.label_key, max_bad_share=options.max_bad_share,
        mean=transform.mean, std=transform.std, crop_pct=transform.crop_pct, crop_mode=transform.crop_mode,
        interpolation=transform.interpolation,
    )  # fmt: skip
    source = open_source(data, options.split, config.in_chans, config.num_classes)
    loader = make_loader(source, data, image_size=config.image_size, channels=config.in_chans, train=False)
    print(f"... {len(source):,} images of {source.name}; {loaded.origin}", file=sys.stderr)
    started = time.perf_counter()
    try:
        scores = count_correct(predictor, loader)
    finally:
        loader.close()
    seconds = time.perf_counter() - started
    rows = [
        (label, source.class_names[label] if label < len(source.class_names) else str(label))
        for label in np.flatnonzero(scores.count)
    ]
    bad = {source.describe(index): reason for index, reason in loader.bad.items()}
    if options.json:
        classes = [
            {"name": name, "label": int(k), "count": int(scores.count[k]), "correct": int(scores.correct[k]),
             "correct5": int(scores.correct5[k])} for k, name in rows
        ]  # fmt: skip
        answer = {"source": source.name, "count": int(scores.count.sum()), "top1": scores.top1, "top5": scores.top5}
        transformed = {**dataclasses.asdict(transform), "origin": loaded.origin}
        answer |= {"classes": classes, "bad": bad, "transform": transformed, "seconds": seconds}
        print(json.dumps(answer, indent=1))
        return 0
    table = [
        (name, f"{scores.count[k]:,}", f"{scores.correct[k] / scores.count[k]:.2%}",
         f"{scores.correct5[k] / scores.count[k]:.2%}") for k, name in rows
    ]  # fmt: skip
    print(format_table([("class", "images", "top-1", "top-5"), *table]))
    left_out = f", {len(bad)} could not be read" if bad else ""
    print(f"\ntop-1 {scores.top1:.2%}, top-5 {scores.top5:.2%} of {int(scores.count.sum()):,} images{left_out}")
    return 0
