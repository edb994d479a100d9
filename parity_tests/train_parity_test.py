"""Whole training runs in both frameworks from the same weights on the same batches, in float64."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from parity_tests.peers import import_timm
from vit_flax import from_state_dict, to_state_dict
from vit_flax.models import build_model
from vit_flax.parity.tolerances import FLOAT64_RELATIVE, FLOAT64_ROUNDING
from vit_flax.recipes.small import digits
from vit_flax.train.config import AugmentConfig, EmaConfig, ResolvedConfig, TrainConfig
from vit_flax.train.eval_step import eval_step
from vit_flax.train.optimizer import learning_rate
from vit_flax.train.state import init_state
from vit_flax.train.step import train_step

NO_RANDOMNESS = {"data.augment": AugmentConfig()}
TINY = {**NO_RANDOMNESS, "model.embed_dim": 16, "model.depth": 2, "model.num_heads": 2, "data.batch_size": 32}


def _digits() -> tuple[np.ndarray, np.ndarray]:
    data: Any = load_digits()
    return data.data.reshape(-1, 8, 8, 1) / 16, data.target.astype(np.int32)


def _torch_model(config: TrainConfig, seed: int = 0) -> Any:
    import_timm()
    from timm.models.vision_transformer import VisionTransformer

    cfg = config.model
    torch.manual_seed(seed)
    model = VisionTransformer(
        img_size=cfg.image_size, patch_size=cfg.patch_size[0], in_chans=cfg.in_chans, num_classes=cfg.num_classes,
        embed_dim=cfg.embed_dim, depth=cfg.depth, num_heads=cfg.num_heads, mlp_ratio=cfg.mlp_ratio,
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():  # so that no part starts at zero
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@dataclasses.dataclass
class Both:
    """The results of two runs; parameters by timm's names."""

    losses: tuple[list[float], list[float]]
    norms: tuple[list[float], list[float]]
    params: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
    ema: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
    correct: tuple[int, int]

    def assert_agree(self) -> None:
        np.testing.assert_allclose(self.losses[1], self.losses[0], rtol=FLOAT64_RELATIVE)
        np.testing.assert_allclose(self.norms[1], self.norms[0], rtol=FLOAT64_RELATIVE)
        for ours, theirs in ((self.params[1], self.params[0]), (self.ema[1], self.ema[0])):
            largest = max(float(np.linalg.norm(value)) for value in theirs.values()) if theirs else 0.0
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                error = float(np.linalg.norm(ours[name] - value))
                assert error <= FLOAT64_RELATIVE * max(float(np.linalg.norm(value)), 1e-3 * largest), (name, error)
        assert self.correct[0] == self.correct[1]


def _train_both(config: TrainConfig, make: Callable[[Any], torch.optim.Optimizer], steps: int) -> Both:
    """Trains by the config in Flax, and with the optimiser of `make(model)` in torch.

    The learning rate of each torch group is the schedule's times its 'lr_scale'.
    """
    config = config.replace(steps=steps).resolve(1437)
    images, labels = _digits()
    order = np.random.default_rng(0).permutation(len(images))
    held_out, rest = order[:359], order[359:]
    size = config.data.batch_size
    batches = [rest[np.arange(i * size, (i + 1) * size) % len(rest)] for i in range(steps)]
    module = _torch_model(config)
    tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    model, params = from_state_dict(tensors, "timm", config.model)
    losses, norms, ema = _train_torch(config, module, make(module), images, labels, batches)
    mean, std = config.data.mean[0], config.data.std[0]
    held_out_images = torch.from_numpy((images[held_out] - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        correct = int((module(held_out_images).argmax(1).numpy() == labels[held_out]).sum())

    state = jax.jit(partial(init_state, config=config))(jax.random.key(0), params=params)
    step = jax.jit(partial(train_step, config=config), donate_argnums=0)
    our_losses, our_norms = [], []
    for rows in batches:
        state, scalars = step(state, {"image": images[rows], "label": labels[rows]})
        our_losses.append(float(scalars["loss"]))
        our_norms.append(float(scalars["grad_norm"]))
    held_out_batch = {"image": images[held_out], "label": labels[held_out]}
    sums = jax.jit(partial(eval_step, config=config))(state.params, held_out_batch)
    assert int(state.step) == steps
    ours = to_state_dict(model, state.params, "timm")
    our_ema = {} if state.ema is None else to_state_dict(model, state.ema, "timm")
    theirs = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    answers = (correct, int(sums["correct"]))
    return Both((losses, our_losses), (norms, our_norms), (theirs, ours), (ema, our_ema), answers)


def _train_torch(
    config: ResolvedConfig,
    module: Any,
    optimizer: Any,
    images: np.ndarray,
    labels: np.ndarray,
    batches: list[np.ndarray],
) -> tuple[list[float], list[float], dict[str, np.ndarray]]:
    from timm.utils.model_ema import ModelEmaV3

    average = None
    if config.ema is not None:
        ema = config.ema
        average = ModelEmaV3(module, ema.decay, ema.min_decay, ema.update_after_step, ema.warmup, ema.warmup_gamma,
                             ema.warmup_power)  # fmt: skip
    rate = learning_rate(config)
    clip = config.optimizer.clip_norm
    losses, norms = [], []
    for step, rows in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = np.asarray(rate(step)).item() * group.get("lr_scale", 1.0)
        x = torch.from_numpy((images[rows] - config.data.mean[0]) / config.data.std[0]).permute(0, 3, 1, 2)
        targets = torch.from_numpy(labels[rows]).long()
        loss = torch.nn.functional.cross_entropy(module(x), targets, label_smoothing=config.loss.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), clip if clip is not None else float("inf"))
        optimizer.step()
        if average is not None:
            average.update(module, step=step + 1)
        losses.append(loss.item())
        norms.append(norm.item())
    averaged = {} if average is None else {n: t.numpy() for n, t in average.module.state_dict().items()}
    return losses, norms, averaged


def _groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    from timm.optim._param_groups import param_groups_weight_decay

    return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=model.no_weight_decay())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_two_hundred_steps_of_the_digits_recipe() -> None:
    changes = {
        "data.batch_size": 32,
        "model.embed_dim": 32,
        "model.depth": 2,
        "ema": EmaConfig(decay=0.98, warmup=True),
    }
    config = digits().replace({**NO_RANDOMNESS, **changes})
    assert config.optimizer.clip_norm == 1.0
    numbers = config.optimizer
    both = _train_both(config, lambda m: torch.optim.AdamW(_groups(m, numbers.weight_decay), eps=numbers.eps), 200)
    assert both.losses[0][-1] < 1.2 < 2.2 < both.losses[0][0]  # it has learned
    assert max(both.norms[0]) > 1.0 > min(both.norms[0])  # clipping has acted and not acted
    assert both.correct[0] > 200
    both.assert_agree()


@pytest.mark.parametrize("name", ["lamb", "sgd", "layer_decay", "frozen"])
def test_optimisers(name: str) -> None:
    import_timm()
    from timm.optim._param_groups import param_groups_layer_decay
    from timm.optim.lamb import Lamb

    changes: dict[str, Any] = {**TINY, "optimizer.clip_norm": None}
    if name == "lamb":
        changes |= {"optimizer.name": "lamb", "optimizer.eps": 1e-6}
        make = lambda m: Lamb(_groups(m, 0.05), max_grad_norm=None, eps=1e-6)  # noqa: E731
    elif name == "sgd":
        changes |= {"optimizer.name": "sgd", "optimizer.nesterov": True, "optimizer.learning_rate": 0.1}
        make = lambda m: torch.optim.SGD(_groups(m, 0.05), momentum=0.9, nesterov=True)  # noqa: E731
    elif name == "layer_decay":
        changes |= {"optimizer.layer_decay": 0.6, "optimizer.b2": 0.95}
        make = lambda m: torch.optim.AdamW(  # noqa: E731
            param_groups_layer_decay(m, 0.05, m.no_weight_decay(), layer_decay=0.6), betas=(0.9, 0.95)
        )
    else:
        changes |= {"optimizer.train": ("head/.*", "blocks_1/mlp/.*"), "optimizer.clip_norm": 0.5}

        def make(m: Any) -> Any:
            for parameter_name, parameter in m.named_parameters():
                parameter.requires_grad = parameter_name.startswith(("head.", "blocks.1.mlp."))
            return torch.optim.AdamW(_groups(m, 0.05))

    _train_both(digits().replace(changes), make, 20).assert_agree()


def test_the_comparison_can_fail() -> None:
    config = digits().replace({**TINY, "optimizer.weight_decay": 0.04})
    both = _train_both(config, lambda m: torch.optim.AdamW(_groups(m, 0.05)), 5)
    with pytest.raises(AssertionError):
        both.assert_agree()


def test_parts_of_a_batch_add_up() -> None:
    config = digits().replace(TINY).replace(steps=1).resolve(1437)
    images, labels = _digits()
    params = build_model(config.model).init(jax.random.key(0), images[:1])["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    norms = []
    for parts in (1, 4):
        own = config.replace(accumulation=parts)
        state = init_state(jax.random.key(0), own, params)
        _, scalars = jax.jit(partial(train_step, config=own))(state, {"image": images[:32], "label": labels[:32]})
        norms.append((float(scalars["loss"]), float(scalars["grad_norm"])))
    np.testing.assert_allclose(norms[0], norms[1], rtol=FLOAT64_ROUNDING)
