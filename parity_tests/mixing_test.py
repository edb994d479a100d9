"""Mixup and cutmix against timm's, given the same lambda and the same centre."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from parity_tests.peers import import_timm
from vit_flax.parity.tolerances import FLOAT32_ROUNDING, FLOAT64_ROUNDING
from vit_flax.train.mixing import cut_box, cutmix, mixup

import_timm()
from timm.data import mixup as timm_mixup  # noqa: E402

HEIGHT, WIDTH, CLASSES = 13, 18, 5


def _batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(6, HEIGHT, WIDTH, 3)), np.asarray([0, 3, 4, 1, 1, 2])


@pytest.mark.parametrize("lam", [0.0, 0.1, 0.37, 0.5, 0.81, 1.0])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_is_timms(kind: str, lam: float, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = _batch()
    alphas = {"mixup_alpha": 1.0} if kind == "mixup" else {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}
    theirs = timm_mixup.Mixup(**alphas, label_smoothing=0.0, num_classes=CLASSES)  # pyright: ignore
    for centre in ((6, 9), (0, 17), (12, 0), (1, 2)):
        draws = iter(centre)
        monkeypatch.setattr(np.random, "beta", lambda *_, **__: lam)
        monkeypatch.setattr(np.random, "randint", lambda *_, draws=draws, **__: next(draws))
        # their tensors are (B, C, H, W)
        mixed, soft = theirs(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels))
        targets = jnp.eye(CLASSES)[labels]
        if kind == "mixup":
            ours, our_soft = mixup(jnp.asarray(images), targets, jnp.asarray(lam))
        else:
            place = jnp.asarray(centre[0]), jnp.asarray(centre[1])
            ours, our_soft = cutmix(jnp.asarray(images), targets, jnp.asarray(lam), place)
        np.testing.assert_allclose(
            ours, mixed.numpy().transpose(0, 2, 3, 1), rtol=FLOAT64_ROUNDING, atol=FLOAT64_ROUNDING
        )
        # their targets are float32
        np.testing.assert_allclose(our_soft, soft.numpy(), rtol=FLOAT32_ROUNDING, atol=FLOAT32_ROUNDING / 10)


def test_the_box_is_timms(monkeypatch: pytest.MonkeyPatch) -> None:
    for lam in np.linspace(0, 1, 41):
        for centre in ((0, 0), (6, 9), (12, 17), (11, 3)):
            draws = iter(centre)
            monkeypatch.setattr(np.random, "randint", lambda *_, draws=draws, **__: next(draws))
            top, bottom, left, right = timm_mixup.rand_bbox((3, HEIGHT, WIDTH), lam)
            ours = cut_box(jnp.asarray(lam), (jnp.asarray(centre[0]), jnp.asarray(centre[1])), HEIGHT, WIDTH)
            assert tuple(map(int, ours)) == (top, bottom, left, right)
