from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE, FLOAT32_LOGITS, FLOAT32_ROUNDING
from vit_flax.train.config import MixingConfig
from vit_flax.train.mixing import erase, mix

KEY = jax.random.key(0)
IMAGES = jax.random.normal(jax.random.key(1), (8, 12, 10, 3))
LABELS = jnp.arange(8) % 5


def _mix(count: int, **fields: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns so many draws of the mixed batch and its labels."""
    config = MixingConfig(**fields)
    keys = jax.random.split(KEY, count)
    images, soft = jax.jit(jax.vmap(lambda key: mix(key, IMAGES, LABELS, 5, config)))(keys)
    return list(zip(np.asarray(images), np.asarray(soft), strict=True))


def test_the_default_mixes_nothing() -> None:
    images, soft = _mix(1)[0]
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(soft, np.eye(5)[LABELS])


@pytest.mark.parametrize("fields", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}])
def test_soft_labels_are_the_shares_of_the_images(fields: dict[str, float]) -> None:
    for images, soft in _mix(5, **fields):
        np.testing.assert_allclose(soft.sum(1), 1, rtol=FLOAT32_ROUNDING)
        lam = soft[0, 0]  # rows 0 and 7 have labels 0 and 2
        if "mixup_alpha" in fields:
            expected = np.asarray(IMAGES) * lam + np.asarray(IMAGES[::-1]) * (1 - lam)
            np.testing.assert_allclose(images, expected, **FLOAT32_LOGITS)
        else:
            kept = (images == np.asarray(IMAGES)).all(-1)
            assert ((images == np.asarray(IMAGES[::-1])).all(-1) | kept).all()
            np.testing.assert_allclose(kept.mean((1, 2)), lam, atol=FLOAT32_ABSOLUTE)


def test_either_of_both_and_sometimes_none() -> None:
    kinds = set()
    for images, soft in _mix(24, mixup_alpha=0.8, cutmix_alpha=1.0, prob=0.7):
        if (images == np.asarray(IMAGES)).all():
            np.testing.assert_allclose(soft, np.eye(5)[LABELS], atol=FLOAT32_ABSOLUTE)
            kinds.add("none")
        else:
            same = (images == np.asarray(IMAGES)) | (images == np.asarray(IMAGES[::-1]))
            kinds.add("cutmix" if same.all() else "mixup")
    assert kinds == {"none", "cutmix", "mixup"}


def test_erasing() -> None:
    images = np.asarray(erase(KEY, jnp.zeros((64, 20, 30, 3)), 0.5, (0.1, 0.3)))
    erased = (images != 0).all(-1)
    assert ((images != 0).any(-1) == erased).all()
    shares = erased.mean((1, 2))
    chosen = shares > 0
    assert 0.3 < chosen.mean() < 0.7
    assert 0.08 < shares[chosen].min() < shares[chosen].max() < 0.33
    for mask in erased[chosen]:  # one rectangle
        assert mask.sum() == mask.any(1).sum() * mask.any(0).sum()
    noise = images[erased]
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
