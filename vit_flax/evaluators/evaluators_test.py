"""k-NN, linear probe and retrieval: scikit-learn's figures on the shipped model's features of the digits, and edges."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import KNeighborsClassifier

import vit_flax
from vit_flax.cli.main import main
from vit_flax.evaluators import neighbours as nearest_file
from vit_flax.evaluators.frozen_features import FrozenFeatures
from vit_flax.evaluators.knn import vote
from vit_flax.evaluators.neighbours import nearest, unit
from vit_flax.evaluators.picture import choose_queries
from vit_flax.evaluators.retrieval import recall_at
from vit_flax.inference import Predictor
from vit_flax.parity.tolerances import FLOAT64_ROUNDING
from vit_flax.pretrained import load
from vit_flax.train.config import DataConfig
from vit_flax.train.data import open_source

SHIPPED = Path(vit_flax.__file__).parent / "reference" / "digits_vit.safetensors"
MODEL = [str(SHIPPED), "--set", "num_heads=4", "--set", "image_size=8,8"]
# far from what it was trained with, so that not everything is right
WRONG = {"mean": 0.3, "std": 0.7}


@pytest.fixture(scope="module")
def digits() -> tuple[FrozenFeatures, FrozenFeatures]:
    """Features of training and test digits, preprocessed with a wrong mean and standard deviation."""
    predictor = Predictor(*load(SHIPPED, num_heads=4, image_size=(8, 8)), batch_size=128)

    def frozen(split: str) -> FrozenFeatures:
        source: Any = open_source(DataConfig(name="digits"), split, 1)
        pixels = (source.images.astype(np.float32) / 255 - WRONG["mean"]) / WRONG["std"]
        return FrozenFeatures(predictor.embeddings(pixels), source.labels, np.arange(len(source)))

    return frozen("train"), frozen("test")


def test_the_command_has_scikit_learns_figures(
    digits: tuple[FrozenFeatures, FrozenFeatures], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = digits
    given = ["evaluate", *MODEL, "--data", "digits", "--mean", "0.3", "--std", "0.7", "--batch-size", "128"]
    picture = tmp_path / "neighbours.png"
    asked = ["--knn", "--plain", "--k", "5,20", "--linear-probe", "--steps", "300", "--learning-rates", "0.001,0.1"]
    assert main([*given, *asked, "--retrieval", "--picture", str(picture), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    for count in (5, 20):
        theirs = KNeighborsClassifier(count).fit(train.features, train.labels).score(test.features, test.labels)
        assert 0.5 < theirs < 1
        assert found["knn"]["top1"][str(count)] == pytest.approx(theirs, abs=FLOAT64_ROUNDING)
    warnings.simplefilter("ignore", ConvergenceWarning)
    theirs = LogisticRegression(max_iter=100).fit(train.features, train.labels).score(test.features, test.labels)
    assert found["linear_probe"]["top1"] == pytest.approx(theirs, abs=0.005)
    assert list(found["linear_probe"]["validation"]) == ["0.001", "0.1"]
    assert found["linear_probe"]["learning_rate"] == 0.1  # which was better on what was held out
    assert (found["images"], found["training_images"]) == (359, 1438)
    distances = pairwise_distances(test.features, metric="cosine")
    np.fill_diagonal(distances, np.inf)
    order = np.argsort(distances, 1)
    for count in (5, 20):
        hits = (test.labels[order[:, :count]] == test.labels[:, None]).any(1).mean()
        assert found["retrieval"]["recall"][str(count)] == pytest.approx(hits, abs=FLOAT64_ROUNDING)
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 800


def test_weighted_votes_are_dinov2s(digits: tuple[FrozenFeatures, FrozenFeatures]) -> None:
    train, test = digits
    found = nearest(test.features, train.features, 20)
    torch_like = unit(test.features).astype(np.float64) @ unit(train.features).astype(np.float64).T
    for count in (10, 20):
        best = np.argsort(-torch_like, 1)[:, :count]
        logits = np.take_along_axis(torch_like, best, 1) / 0.07
        weights = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        votes = (np.eye(10)[train.labels[best]] * weights[..., None]).sum(1)
        np.testing.assert_array_equal(vote(found, train.labels, 10, count), votes.argmax(1))
    plain = vote(found, train.labels, 10, 20, None)
    assert (plain != vote(found, train.labels, 10, 20)).any()  # weights do something
    rows = choose_queries(plain, test.labels)
    assert len(rows) == len(set(rows)) == 8
    assert (plain[rows] != test.labels[rows]).sum() == 4


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_in_parts_and_of_itself(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    vectors[7] = vectors[3]  # of equals the first is taken
    whole = nearest(vectors, vectors, 5, metric, without_self=True)
    monkeypatch.setattr(nearest_file, "SCORES_BYTES", 4 * 30 * 8)  # eight queries at a time
    parts = nearest(vectors, vectors, 5, metric, without_self=True)
    np.testing.assert_array_equal(parts.indices, whole.indices)
    expected = pairwise_distances(vectors.astype(np.float64), metric=metric)
    np.fill_diagonal(expected, np.inf)
    np.testing.assert_array_equal(whole.indices, np.argsort(expected.round(12), 1, kind="stable")[:, :5])
    assert (whole.indices[3][0], whole.indices[7][0]) == (7, 3)
    with pytest.raises(ValueError, match="30 neighbours are asked for, of 29 there are"):
        nearest(vectors, vectors, 30, metric, without_self=True)


def test_images_that_are_the_only_one_of_their_label_do_not_ask() -> None:
    features = np.asarray([[1, 0], [1, 0.1], [0, 1], [0.1, 1], [-1, 0]], np.float32)
    images = FrozenFeatures(features, np.asarray([0, 0, 1, 0, 2]), np.arange(5))
    recall, asking = recall_at(images, (1, 2))
    assert asking == 3
    assert recall == {1: pytest.approx(2 / 3), 2: 1.0}
    with pytest.raises(ValueError, match="no two images have the same label"):
        recall_at(images.take(np.asarray([0, 2, 4])), (1,))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("--k 5", "--k needs --knn or --retrieval"),
        ("--linear-probe --picture a.png", "--picture needs --knn"),
        ("--knn --steps 5", "--steps needs --linear-probe"),
        ("--knn --plain --temperature 1", "leave --temperature out"),
        ("--knn --split train", "--split train is the training data of these evaluators"),
        ("--retrieval --k 359", "--k 359: there are 358 other images"),
        ("--retrieval --by-number", "are for a head's classes"),
        ("--knn --k 0", "is not counts of 1 or more"),
        ("--linear-probe --learning-rates 0,1", "is not positive numbers"),
        ("--knn --picture no/a.png", "its folder does not exist"),
    ],
)
def test_what_does_not_fit_is_one_line(asked: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: Any = main(["evaluate", *MODEL, "--mean", "0", "--std", "1", "--data", "digits", *asked.split()])
    except SystemExit as left:
        status = left.code
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("...")]
    assert (status, len(lines)) == (2, 1)
    assert told in lines[0]
