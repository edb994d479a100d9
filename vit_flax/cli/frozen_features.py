"""`vit-flax evaluate --knn`, `--linear-probe` and `--retrieval`: evaluators of frozen features."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_flax.cli.data import open_data
from vit_flax.cli.options import format_table
from vit_flax.cli.progress import Progress

if TYPE_CHECKING:
    from vit_flax.cli.loading import Loaded
    from vit_flax.evaluators.frozen_features import FrozenFeatures
    from vit_flax.evaluators.neighbours import Neighbours
    from vit_flax.train.data.loader import Loader

KNN_COUNTS, RETRIEVAL_COUNTS = (10, 20), (1, 5, 10)
TRAIN = "train"  # the split of the gallery, and of the probe's training


def add_frozen_options(parser: argparse.ArgumentParser) -> None:
    """Adds the evaluators and their options."""
    group = parser.add_argument_group(
        "frozen features", "evaluators that need no head; several run on one pass over the images"
    )
    group.add_argument("--knn", action="store_true", help="k nearest neighbours in the training split, as DINOv2")
    group.add_argument("--linear-probe", action="store_true", help="a linear classifier, learning rates in parallel")
    group.add_argument("--retrieval", action="store_true", help="recall of images of the same label, within the split")
    group.add_argument("--k", type=_counts, metavar="N,N", help="neighbours (default 10,20; of --retrieval 1,5,10)")
    group.add_argument("--temperature", type=float, metavar="X", help="temperature of --knn's votes (default 0.07)")
    group.add_argument(
        "--plain",
        action="store_true",
        help="--knn by Euclidean distance with equal votes, as scikit-learn's KNeighborsClassifier",
    )
    group.add_argument("--picture", metavar="FILE", help="draw nearest neighbours of some images, with --knn")
    group.add_argument(
        "--learning-rates", type=_numbers, metavar="X,X", help="of --linear-probe, for a batch of 256 (scaled to 1024)"
    )
    group.add_argument("--steps", type=int, metavar="N", help="of --linear-probe, of 1024 images (default 12500)")


def _counts(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = (0,)
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not counts of 1 or more with commas between them")
    return found


def _numbers(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = (0.0,)
    if not min(found) > 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not positive numbers with commas between them")
    return found


def check_frozen_options(options: argparse.Namespace) -> bool:
    """Returns whether an evaluator is chosen.

    Raises:
        ValueError: an option's evaluator is not chosen, or options exclude each other.
    """
    probe = {"learning_rates": options.learning_rates, "steps": options.steps}
    knn = {"temperature": options.temperature, "plain": options.plain or None, "picture": options.picture}
    for asked, needed, of_it in (
        (options.knn, "--knn", knn), (options.linear_probe, "--linear-probe", probe),
        (options.knn or options.retrieval, "--knn or --retrieval", {"k": options.k}),
    ):  # fmt: skip
        wrong = [name for name, value in of_it.items() if value is not None and not asked]
        if wrong:
            raise ValueError(f"--{wrong[0].replace('_', '-')} needs {needed}")
    if options.plain and options.temperature is not None:
        raise ValueError("--plain gives every neighbour an equal vote: leave --temperature out")
    if options.temperature is not None and not options.temperature > 0:
        raise ValueError(f"--temperature must be positive, got {options.temperature}")
    if options.steps is not None and options.steps < 1:
        raise ValueError(f"--steps must be at least 1, got {options.steps}")
    if options.picture and not Path(options.picture).absolute().parent.is_dir():
        raise ValueError(f"{options.picture}: its folder does not exist")
    asked = options.knn or options.linear_probe or options.retrieval
    if asked and (options.by_number or options.labels):
        raise ValueError("--labels and --by-number are for a head's classes: leave them out")
    if options.split == TRAIN and (options.knn or options.linear_probe):
        raise ValueError("--split train is the training data of these evaluators: evaluate on val or test")
    return asked


@dataclasses.dataclass(frozen=True)
class Split:
    """The features of a split's images, and their source."""

    frozen: FrozenFeatures
    loader: Loader


def run_frozen(options: argparse.Namespace, loaded: Loaded) -> int:
    """Runs the chosen evaluators and returns the exit status."""
    started = time.perf_counter()
    test_loader = open_data(options, loaded, options.split, None)
    names = list(test_loader.source.class_names)
    train_loader = validation_loader = None
    if options.knn or options.linear_probe:
        train_loader = open_data(options, loaded, TRAIN, None)
        names = list(train_loader.source.class_names)
        if options.linear_probe and options.split == "test" and _has_validation(options):
            validation_loader = open_data(options, loaded, "val", None)
    loaded.show_notes()
    numbers, strange = _known(test_loader.source.class_names, names)
    train = None if train_loader is None else _features(loaded, train_loader, None)
    test = _features(loaded, test_loader, numbers)
    told = {"source": test_loader.source.name, "images": len(test.frozen), "left_out": strange}
    answer: dict[str, Any] = {**told, "bad": _bad(train) | _bad(test), "notes": loaded.notes}
    if train is not None:
        answer["training_images"] = len(train.frozen)
    if options.knn:
        assert train is not None
        answer["knn"] = _knn(options, train, test, names)
    if options.linear_probe:
        assert train is not None
        validation = None
        if validation_loader is not None:
            validation = _features(loaded, validation_loader, _known(validation_loader.source.class_names, names)[0])
        answer["linear_probe"] = _linear_probe(options, train.frozen, validation, test.frozen, len(names))
    if options.retrieval:
        answer["retrieval"] = _retrieval(options, test.frozen)
    answer["seconds"] = time.perf_counter() - started
    if options.json:
        print(json.dumps(answer, indent=1))
    else:
        _print(options, answer)
    return 0


def _has_validation(options: argparse.Namespace) -> bool:
    from vit_flax.cli.data import data_config
    from vit_flax.train.data import find_splits

    return "val" in find_splits(data_config(options))


def _known(names: Any, known: list[str]) -> tuple[np.ndarray, list[str]]:
    """Returns the index of each name in `known`, -1 for others, and those others.

    Raises:
        ValueError: no name is in `known`.
    """
    place = {name: number for number, name in enumerate(known)}
    numbers = np.asarray([place.get(name, -1) for name in names], np.int64)
    strange = [name for name, number in zip(names, numbers, strict=True) if number < 0]
    if len(strange) == len(numbers):
        raise ValueError(f"none of the classes ({', '.join(names[:8])}) is one of the training split's")
    return numbers, strange


def _features(loaded: Loaded, loader: Loader, numbers: np.ndarray | None) -> Split:
    from vit_flax.evaluators.frozen_features import frozen_features

    print(f"... {len(loader.source):,} images of {loader.source.name}", file=sys.stderr)
    try:
        with Progress(len(loader.source)) as progress:
            return Split(frozen_features(loaded.predictor, loader, numbers, progress.advance), loader)
    finally:
        loader.close()


def _bad(split: Split | None) -> dict[str, str]:
    if split is None:
        return {}
    return {split.loader.source.describe(index): reason for index, reason in split.loader.bad.items()}


def _knn(options: argparse.Namespace, train: Split, test: Split, names: list[str]) -> dict[str, Any]:
    from vit_flax.evaluators.knn import TEMPERATURE, vote
    from vit_flax.evaluators.neighbours import nearest

    counts = options.k or KNN_COUNTS
    if max(counts) > len(train.frozen):
        raise ValueError(f"--k {max(counts)}: there are {len(train.frozen)} training images")
    metric = "euclidean" if options.plain else "cosine"
    temperature = None if options.plain else options.temperature or TEMPERATURE
    found = nearest(test.frozen.features, train.frozen.features, max(counts), metric)
    guesses = {count: vote(found, train.frozen.labels, len(names), count, temperature) for count in counts}
    if options.picture:
        _draw(options.picture, train, test, found, guesses[counts[0]], names)
    shares = {str(count): float((guess == test.frozen.labels).mean()) for count, guess in guesses.items()}
    return {"top1": shares, "metric": metric, "temperature": temperature, "picture": options.picture}


def _draw(path: str, train: Split, test: Split, found: Neighbours, predicted: np.ndarray, names: list[str]) -> None:
    from vit_flax.evaluators.picture import choose_queries, draw_neighbours

    def image(split: Split, row: int) -> tuple[np.ndarray, int]:
        return split.loader.source[int(split.frozen.indices[row])]["image"], int(split.frozen.labels[row])

    rows = choose_queries(predicted, test.frozen.labels)
    picture = draw_neighbours(
        rows.tolist(), lambda row: image(test, row), lambda row: image(train, row), found, predicted, names
    )
    picture.save(path)


def _linear_probe(
    options: argparse.Namespace, train: FrozenFeatures, validation: Split | None, test: FrozenFeatures, num_classes: int
) -> dict[str, Any]:
    from vit_flax.evaluators.linear_probe import BATCH_SIZE, LEARNING_RATES, STEPS, linear_probe

    rates, steps = options.learning_rates or LEARNING_RATES, options.steps or STEPS
    own = None if validation is None else validation.frozen
    with Progress(steps if own else 2 * steps, "steps") as progress:
        chosen = linear_probe(train, own, num_classes, rates, steps, BATCH_SIZE, told=progress.advance)
    return {
        "top1": float((chosen.probe.classify(test.features) == test.labels).mean()),
        "learning_rate": chosen.learning_rate,
        "validation": {f"{rate:g}": share for rate, share in chosen.validation.items()},
        "validated_on": "a tenth of the training images" if validation is None else validation.loader.source.name,
        "steps": steps,
    }


def _retrieval(options: argparse.Namespace, test: FrozenFeatures) -> dict[str, Any]:
    from vit_flax.evaluators.retrieval import recall_at

    counts = options.k or RETRIEVAL_COUNTS
    if max(counts) > len(test) - 1:
        raise ValueError(f"--k {max(counts)}: there are {len(test) - 1} other images")
    recall, asking = recall_at(test, counts)
    return {"recall": {str(count): share for count, share in recall.items()}, "queries": asking}


def _print(options: argparse.Namespace, answer: dict[str, Any]) -> None:
    rows: list[tuple[str, str]] = []
    if knn := answer.get("knn"):
        kind = "distance, plain votes" if options.plain else f"cosine, temperature {knn['temperature']:g}"
        rows += [(f"{count} nearest neighbours ({kind})", f"{share:.2%}") for count, share in knn["top1"].items()]
    if probe := answer.get("linear_probe"):
        rows.append((f"linear probe (learning rate {probe['learning_rate']:g})", f"{probe['top1']:.2%}"))
    if found := answer.get("retrieval"):
        rows += [(f"recall at {count}", f"{share:.2%}") for count, share in found["recall"].items()]
    print(format_table([("evaluator", "top-1" if not answer.get("retrieval") else "share"), *rows]))
    if probe:
        tried = [(rate, f"{share:.2%}") for rate, share in probe["validation"].items()]
        print(f"\nlearning rates on {probe['validated_on']}:\n" + format_table([("rate", "top-1"), *tried]))
    rest = f", {answer['training_images']:,} training images" if "training_images" in answer else ""
    if answer["bad"]:
        rest += f", {len(answer['bad'])} could not be read"
    if answer["left_out"]:
        rest += f"; of classes that the training split does not have, left out: {', '.join(answer['left_out'])}"
    print(f"\n{answer['images']:,} images of {answer['source']}{rest}")
    if options.picture:
        print(f"wrote {options.picture}")
