"""Attention weights against transformers' output_attentions and timm's attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import vit_flax
from parity_tests.agreement import assert_agrees, assert_differs, run_torch
from parity_tests.peers import import_timm
from parity_tests.random_weights import in_float64, random_images, randomise
from parity_tests.small_transformers import FAMILIES, small_transformer
from vit_flax.attention_weights import attention_maps
from vit_flax.models import relative_position_bias

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers and its progress bars


@pytest.fixture(autouse=True)
def softmax_in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes the cast to float32 of transformers' eager attention, which it has for every dtype of the model."""
    softmax = torch.nn.functional.softmax
    monkeypatch.setattr(torch.nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim))


def weights(family: str, folder: Any) -> tuple[list[np.ndarray], Any, Any, np.ndarray]:
    """Returns transformers' weights of every block, our model of its folder, and the images."""
    theirs = small_transformer(family, folder, attn_implementation="eager")
    images = random_images((24, 24))
    out = run_torch(lambda x: theirs(x, output_attentions=True).attentions, images)
    return [part.numpy() for part in out], *vit_flax.load(folder), images


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_gives_the_same(family: str, tmp_path: Any) -> None:
    theirs, model, params, images = weights(family, tmp_path)
    ours = attention_maps(model, params, images)
    assert list(ours) == [0, 1]
    for number, expected in enumerate(theirs):
        assert_agrees(ours[number], expected)
    assert_differs(ours[1][:, ::-1], theirs[1])  # heads in another order
    np.testing.assert_array_equal(attention_maps(model, params, images, [-1])[1], ours[1])


def test_a_missing_bias_is_seen(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, model, params, images = weights("beit", tmp_path)
    monkeypatch.setattr(relative_position_bias.RelativePositions, "apply", lambda _, a, q, k, *rest: (q, k, None))
    assert_differs(attention_maps(model, params, images)[0], theirs[0])


def test_timms_eva02_gives_the_same() -> None:
    timm = import_timm()
    name = "eva02_tiny_patch14_224"
    theirs = in_float64(randomise(timm.create_model(name, img_size=28, depth=2, num_classes=3)).double().eval())
    seen: list[np.ndarray] = []
    for block in theirs.blocks:
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda _module, _args, out: seen.append(out.numpy()))
    images = random_images((28, 28))
    run_torch(theirs, images)
    tensors = theirs.state_dict()
    model, params = vit_flax.from_state_dict(tensors, config=name, image_size=28, depth=2, num_classes=3)
    ours = attention_maps(model, params, images)
    for number in (0, 1):
        assert_agrees(ours[number], seen[number])
