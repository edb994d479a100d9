"""A broken file loads or is refused, whatever its contents."""

import pytest

from parity_tests.fuzzing import run


def check(count: int, seed: int) -> None:
    found = run(count, seed)
    assert found["failures"] == []
    assert found["left"] == ["a"]
    assert sum(found["counts"].values()) == count
    assert found["counts"]["read"] > 0  # damage to the numbers alone
    assert found["counts"]["refused"] > count // 3


def test_three_hundred_broken_files():
    check(300, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_ten_thousand_broken_files(seed):
    check(1000, seed)
