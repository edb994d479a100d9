"""Fifty AdamW steps on the same batches, and the initial distributions of both frameworks."""

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict

from parity_tests.agreement import assert_rows_agree, converted
from vit_flax import reference, to_state_dict
from vit_flax.config import T2TViTConfig, ViTConfig
from vit_flax.models import build_model, no_weight_decay, trainable_mask, weight_decay_mask
from vit_flax.parity import AdamW, compare_steps

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("kind", ["vit", "t2t"])
def test_fifty_adamw_steps(kind: str) -> None:
    if kind == "vit":
        module = reference.ViT_Model((1, 8, 12), 4, 24, 5, 4, depth=2, qkv_bias=True)
        subject, model = converted(module, "explained", num_heads=4, image_size=(8, 12))
        images = [RNG.standard_normal((8, 1, 8, 12)) for _ in range(50)]
    else:
        module = reference.T2T_ViT((1, 16, 20), (5, 3, 3), 5, 24, 8, 2, depth=1)
        subject, model = converted(module, "explained_t2t", num_heads=2, image_size=(16, 20))
        images = [RNG.standard_normal((8, 1, 16, 20)) for _ in range(50)]
    batches = [(x, RNG.integers(0, 5, 8)) for x in images]
    mask = weight_decay_mask(model.config, subject.params)
    steps = compare_steps(subject, batches, mask, no_weight_decay(model.config), AdamW(learning_rate=3e-3))
    assert len(steps.flax_losses) == 50
    assert steps.flax_losses[-1] != steps.flax_losses[0]
    assert_rows_agree(steps.rows)


def test_the_decay_mask_is_the_references_exemption() -> None:
    module = reference.ViT_Model((1, 8, 8), 4, 24, 5, 4, depth=2)
    subject, model = converted(module, "explained", num_heads=4, image_size=8)
    mask = flatten_dict(weight_decay_mask(model.config, subject.params), sep="/")
    spared = {path for path, decayed in mask.items() if not decayed}
    assert spared == module.no_weight_decay() | {"pos_embed"}  # the second is no parameter of torch's optimiser
    trained = flatten_dict(trainable_mask(model.config, subject.params), sep="/")
    assert {path for path, is_trained in trained.items() if not is_trained} == {"pos_embed"}


def test_fractional_labels_mean_squared_error() -> None:
    module = reference.ViT_Model((1, 4, 4), 2, 16, 1, 2, depth=1)
    subject, model = converted(module, "explained", num_heads=2, image_size=4)
    batches = [(RNG.standard_normal((4, 1, 4, 4)), RNG.standard_normal((4, 1))) for _ in range(3)]
    mask = weight_decay_mask(model.config, subject.params)
    assert_rows_agree(compare_steps(subject, batches, mask, no_weight_decay(model.config)).rows)


def _moments(sample: np.ndarray) -> tuple[float, float, float]:
    deviation = float(sample.std())
    return float(sample.mean()), deviation, float((sample**4).mean() / max(deviation, 1e-30) ** 4)


@pytest.mark.parametrize("kind", ["vit", "t2t"])
def test_initial_values_come_from_the_references_distributions(kind: str) -> None:
    """Mean, deviation and kurtosis (3 for a normal, less for a truncated one) of every tensor, or its constant."""
    torch.manual_seed(1)
    if kind == "vit":
        module = reference.ViT_Model((3, 64, 32), 16, 96, 50, 4, depth=1, qkv_bias=True)
        config = ViTConfig(
            image_size=(64, 32), patch_size=(16, 16), embed_dim=96, num_classes=50, num_heads=4, depth=1,
            value_skip=True, pos_embed="sinusoid",
        )  # fmt: skip
    else:
        module = reference.T2T_ViT((3, 32, 32), (7, 3, 3), 50, 96, 64, 4, depth=1, qkv_bias=True)
        config = T2TViTConfig(
            image_size=(32, 32), embed_dim=96, num_classes=50, num_heads=4, depth=1, value_skip=True,
            pos_embed="sinusoid",
        )  # fmt: skip
    model = build_model(config)
    images = np.zeros((1, *config.image_size, 3), np.float32)
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    ours = to_state_dict(model, params)
    theirs = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    assert ours.keys() == theirs.keys()
    normal = 0
    for name, tensor in theirs.items():
        if tensor.std() == 0 or name.endswith("pos_embed"):
            np.testing.assert_array_equal(ours[name], tensor, err_msg=name)
            continue
        normal += 1
        # of n samples the mean deviates by 0.02 / sqrt(n), the deviation by 0.02 / sqrt(2 n), kurtosis by sqrt(24 / n)
        for sample in (tensor, ours[name]):
            mean, deviation, kurtosis = _moments(sample)
            assert abs(mean) < 5 * 0.02 / sample.size**0.5, name
            assert abs(deviation - 0.02) < 5 * 0.02 / (2 * sample.size) ** 0.5, name
            assert sample.size < 1000 or abs(kurtosis - 3) < 6 * (24 / sample.size) ** 0.5, name
    assert normal >= 6
