"""Scores of an evaluation against scikit-learn's."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from vit_flax.parity.tolerances import FLOAT64_ROUNDING
from vit_flax.train.config import EarlyStoppingConfig, MeshConfig
from vit_flax.train.history import History
from vit_flax.train.scoring import average_precision, evaluate
from vit_flax.train.sharding import make_mesh


def test_average_precision_is_sklearns() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (40, 5))
    labels[:, 3], labels[:, 4] = 1, 0  # a class of all images, and one of none
    scores = rng.normal(size=(40, 5))
    scores[:, 1] = np.round(scores[:, 1])  # many share a score
    found = average_precision(scores, labels)
    expected = [average_precision_score(labels[:, k], scores[:, k]) for k in range(4)]
    np.testing.assert_allclose(found[:4], expected, rtol=FLOAT64_ROUNDING)
    assert np.isnan(found[4])
    assert np.isnan(average_precision(scores[:0], labels[:0])).all()


def test_a_batch_is_dispatched_when_the_one_before_is_done() -> None:
    @jax.jit
    def count(images: jax.Array) -> jax.Array:
        square = jnp.full((300, 300), 1 / 300)
        product = jax.lax.fori_loop(0, 50, lambda _, x: x @ square, square)  # long enough to be seen under way
        return images.shape[0] + (0 * product.sum()).astype(jnp.int32)

    before: list[bool] = []
    sums: list[Any] = []

    def eval_function(params: None, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        before.extend(one.is_ready() for one in sums[-1:])
        sums.append(count(batch["image"]))
        zero = jnp.zeros(())
        return {"count": sums[-1], "loss": zero, "correct": zero, "correct5": zero}

    batches = [{"image": np.zeros((4, 2, 2, 1), np.uint8), "label": np.zeros(4, np.int32)}] * 5
    scores = evaluate(batches, eval_function, None, make_mesh(MeshConfig(), jax.devices()[:1]))
    assert scores.numbers["count"] == 20
    assert before == [True] * 4


@pytest.mark.parametrize(
    ("monitor", "min_delta", "stops_at"), [("score", 0.0, 5), ("score", 0.05, 3), ("loss", 0.0, None)]
)
def test_a_run_stops_after_evaluations_without_improvement(
    monitor: str, min_delta: float, stops_at: int | None
) -> None:
    stopping = EarlyStoppingConfig(patience=2, min_delta=min_delta, monitor=monitor)
    history = History("val")
    stopped = []
    for step, accuracy in enumerate((0.5, 0.52, 0.54, 0.54, 0.53, 0.6), 1):
        numbers = {"accuracy": accuracy, "loss": 1 / step}
        # what a checkpoint holds is all there is
        history = History.restore(history.to_dict(), "val", stopping)
        if history.stopped:
            break
        if history.add(step, numbers, "accuracy", stopping):
            assert history.best["step"] == step
        stopped += [step] if history.stopped else []
    assert stopped == ([] if stops_at is None else [stops_at])


def test_scores_of_another_split_are_forgotten() -> None:
    history = History("val")
    history.add(1, {"accuracy": 0.9, "loss": 0.1}, "accuracy")
    assert History.restore(history.to_dict(), "val", None).best["accuracy"] == 0.9
    assert History.restore(history.to_dict(), "test", None).best == {}
