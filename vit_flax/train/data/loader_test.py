"""Batches are the same for any number of processes, threads, workers and restarts; bad images are left out."""

import dataclasses
import json
import logging
from typing import Any

import numpy as np
import pytest

from vit_flax.preprocessing.decode import BadImageError
from vit_flax.train.config import AugmentConfig, DataConfig
from vit_flax.train.data import DataError, open_source
from vit_flax.train.data.augment import TrainTransform, shift
from vit_flax.train.data.loader import Loader, make_loader
from vit_flax.train.data.source import ArraySource, Example

AUGMENT = AugmentConfig(
    random_resized_crop=(0.3, 1.0), flip=True, shift_pixels=1, auto="randaugment", interpolation="random"
)
DATA = DataConfig(batch_size=12, augment=AUGMENT, threads=1)
SIZE = {"image_size": (8, 8), "channels": 1}


class Spoilt(ArraySource):
    """Images some of which cannot be read."""

    bad: tuple[int, ...] = ()

    def __getitem__(self, index: int) -> Example:
        if index in self.bad:
            raise BadImageError("spoilt")
        return super().__getitem__(index)


def _source(count: int = 40, bad: tuple[int, ...] = ()) -> Spoilt:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 8, 8, 1), np.uint8)
    source = Spoilt("spoilt", images, np.arange(count) % 3, ("a", "b", "c"))
    source.bad = bad
    return source


def _loader(source: Any = None, train: bool = True, **fields: Any) -> Loader:
    share = {name: fields.pop(name) for name in ("process_index", "process_count", "seed") if name in fields}
    return make_loader(source or _source(), dataclasses.replace(DATA, **fields), **SIZE, train=train, **share)


def _take(loader: Any, count: int) -> list[dict[str, np.ndarray]]:
    batches = [next(loader) for _ in range(count)]
    loader.close()
    return batches


def _assert_same(left: list[dict[str, Any]], right: list[dict[str, Any]]) -> None:
    for one, other in zip(left, right, strict=True):
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_an_epoch_is_a_permutation_and_each_its_own() -> None:
    loader = _loader(seed=5)
    assert loader.steps_per_epoch == 3
    batches = _take(loader, 6)
    first, second = (np.concatenate([batch["index"] for batch in batches[i : i + 3]]) for i in (0, 3))
    assert len(set(first)) == len(set(second)) == 36
    assert not np.array_equal(first, second)
    assert all(batch["image"].dtype == np.uint8 and batch["label"].dtype == np.int32 for batch in batches)
    assert all((batch["label"] == batch["index"] % 3).all() for batch in batches)
    other = _take(_loader(seed=6), 1)[0]
    assert not np.array_equal(other["index"], batches[0]["index"])


def test_the_same_image_differs_from_epoch_to_epoch() -> None:
    batches = _take(_loader(batch_size=40), 2)
    first, second = (batch["image"][np.argsort(batch["index"])] for batch in batches)
    assert (first != second).any(axis=(1, 2, 3)).mean() > 0.9


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("train", [True, False])
def test_processes_share_the_same_batches(train: bool, count: int) -> None:
    whole = _take(_loader(train=train), 4)
    parts = [_take(_loader(train=train, process_index=i, process_count=count), 4) for i in range(count)]
    joined = [{name: np.concatenate([b[name] for b in step]) for name in step[0]} for step in zip(*parts, strict=True)]
    _assert_same(whole, joined)


def test_threads_and_workers_change_nothing() -> None:
    alone = _take(_loader(), 5)
    _assert_same(alone, _take(_loader(threads=4, prefetch=5), 5))
    _assert_same(alone, _take(_loader(workers=2), 5))


def test_it_goes_on_where_it_was() -> None:
    loader = _loader(bad_source := _source(bad=(7,)), max_bad_share=0.1)
    batches = [next(loader) for _ in range(8)]
    loader = _loader(bad_source, max_bad_share=0.1)
    _take(loader, 5)
    state = json.loads(json.dumps(loader.get_state()))
    resumed = _loader(bad_source, max_bad_share=0.1, workers=1)
    resumed.set_state(state)
    assert resumed.bad == {7: "spoilt"}
    _assert_same(batches[5:], _take(resumed, 3))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"batch_size": 10}, "batch_size was 12 and is 10"),
        ({"seed": 1}, "seed was 0 and is 1"),
    ]
    for changes, said in wrong:
        with pytest.raises(DataError, match=said):
            _loader(**changes).set_state(state)


class _First:
    """The first batches of a loader, as Grain's own check of restarts takes a dataset."""

    def __init__(self, loader: Loader, count: int) -> None:
        self._loader, self._left = loader, count

    def __iter__(self) -> Any:
        return self

    def __next__(self) -> dict[str, Any]:
        if self.get_state()["step"] == self._left:
            raise StopIteration
        return next(self._loader)

    def get_state(self) -> dict[str, Any]:
        return self._loader.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self._loader.set_state(state)


@pytest.mark.parametrize("train", [True, False])
def test_it_goes_on_from_every_state_by_grains_own_check(train: bool) -> None:
    from grain.experimental import assert_equal_output_after_checkpoint

    class Pipeline:
        def __iter__(self) -> Any:
            return _First(_loader(train=train), 4)

    assert_equal_output_after_checkpoint(Pipeline())


def test_evaluation_sees_every_image_once() -> None:
    loader = _loader(_source(bad=(3, 30)), train=False, max_bad_share=0.1, augment=AUGMENT)
    for _ in range(2):  # an evaluation starts again each time
        batches = list(loader)
        assert [len(batch["index"]) for batch in batches] == [12] * 4
        indices = np.concatenate([batch["index"] for batch in batches])
        labels = np.concatenate([batch["label"] for batch in batches])
        assert sorted(indices[indices >= 0]) == sorted(set(range(40)) - {3, 30})
        assert ((labels == -1) == (indices == -1)).all()
        images = np.concatenate([batch["image"] for batch in batches])
        np.testing.assert_array_equal(images[indices >= 0], _source().images[indices[indices >= 0]])
    loader.close()


def test_a_bad_image_is_replaced_counted_and_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loader = _loader(_source(bad=(3, 4)), max_bad_share=0.05, batch_size=40)
        batch = _take(loader, 3)[0]
    assert sorted(batch["index"]) == sorted([*({*range(40)} - {3, 4}), 5, 5])
    assert set(loader.bad) == {3, 4}
    said = [record.getMessage() for record in caplog.records]  # once, though every epoch meets them again
    assert sorted(text[:24] for text in said) == ["left out spoilt[3]: spoi", "left out spoilt[4]: spoi"]
    assert said[1].endswith("spoilt (2 so far)")


@pytest.mark.parametrize("workers", [0, 1])
def test_too_many_bad_images_stop_the_run(workers: int) -> None:
    with pytest.raises(
        DataError, match=r"spoilt: 3 of 40 images cannot be read, more than data.max_bad_share 0.05 all"
    ):
        _take(_loader(_source(bad=(3, 4, 20)), max_bad_share=0.05, batch_size=40, workers=workers), 3)
    with pytest.raises(DataError, match="40 of 40 images cannot be read"):
        _take(_loader(_source(bad=tuple(range(40))), max_bad_share=1.0, workers=workers), 1)


def test_a_bad_label_stops_the_run() -> None:
    class Mislabelled(Spoilt):
        def __getitem__(self, index: int) -> Example:
            raise DataError("label 9 is out of range")

    source = _source()
    with pytest.raises(DataError, match="label 9"):
        _take(_loader(Mislabelled("x", source.images, source.labels, source.class_names)), 1)


def test_batches_that_do_not_divide() -> None:
    with pytest.raises(DataError, match="a batch of 12 images is not divisible by 5 processes"):
        _loader(process_count=5)
    with pytest.raises(DataError, match="spoilt: 11 images are fewer than one batch of 12"):
        _loader(_source(11))
    assert _loader(_source(11), train=False).steps_per_epoch == 1


@pytest.mark.parametrize("auto", ["none", "randaugment", "autoaugment", "three_augment"])
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_gives_images_of_the_models_size(auto: str, channels: int) -> None:
    import random

    config = AugmentConfig(random_resized_crop=(0.08, 1.0), auto=auto, color_jitter=0.3, magnitude_std=3.0)
    transform = TrainTransform(config, (10, 12), channels, (100,) * channels)
    image = np.random.default_rng(0).integers(0, 256, (17, 23, 3), np.uint8)
    for seed in range(40):
        result = transform(image, random.Random(seed))
        assert result.shape == (10, 12, channels)
        assert result.dtype == np.uint8
        np.testing.assert_array_equal(result, transform(image, random.Random(seed)))


def test_shift() -> None:
    image = np.arange(1, 13, dtype=np.uint8).reshape(3, 4, 1)
    assert shift(image, 1, 0)[:, :, 0].tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert shift(image, 0, -2)[:, :, 0].tolist() == [[3, 4, 0, 0], [7, 8, 0, 0], [11, 12, 0, 0]]
    assert not shift(image, 3, 0).any()


def test_the_digits_as_they_are() -> None:
    source = open_source(DataConfig(name="digits"), "test", 1, 10)
    loader = make_loader(source, DataConfig(batch_size=100), **SIZE, train=False)
    batches = list(loader)
    images = np.concatenate([batch["image"] for batch in batches])[:359]
    np.testing.assert_array_equal(images, source.images)  # pyright: ignore
    assert loader.describe(batches[0]["index"][:2]) == ["digits/test[0]", "digits/test[1]"]
