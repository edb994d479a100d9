"""Ten steps of contrastive training in both frameworks, from the same weights on the same pairs, in float64."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
import torch

import vit_flax
from parity_tests.peers import import_transformers
from parity_tests.random_weights import randomise
from vit_flax.parity.tolerances import FLOAT64_RELATIVE
from vit_flax.train.config import DataConfig, LossConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from vit_flax.train.state import init_state
from vit_flax.train.step import train_step

transformers = import_transformers()

STEPS = 10
PAIRS = 6
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def build(kind: str) -> Any:
    text = {**SIZES, "vocab_size": 20, "max_position_embeddings": 5, "eos_token_id": 19, "bos_token_id": 1}
    more = {} if kind == "Siglip" else {"projection_dim": 12}
    config = getattr(transformers, f"{kind}Config")(
        text_config={**text, **more}, vision_config={**SIZES, "image_size": 8, "patch_size": 4}, **more
    )
    model = randomise(getattr(transformers, f"{kind}Model")(config))
    with torch.no_grad():
        # above the largest scale there is, to which the first step brings it
        model.logit_scale.fill_(math.log(100.5) if kind == "CLIP" else 1.0)
    return model.train()


def batches() -> Any:
    drawn = np.random.default_rng(0)
    images, tokens = drawn.random((STEPS, PAIRS, 8, 8, 3)), drawn.integers(2, 19, (STEPS, PAIRS, 5))
    tokens[..., -1] = 19
    return zip(images, tokens.astype(np.int32), strict=True)


def step_torch(model: Any, optimizer: Any, images: np.ndarray, tokens: np.ndarray) -> float:
    pixels = torch.from_numpy(np.ascontiguousarray(((images - 0.5) / 0.5).transpose(0, 3, 1, 2)))
    found = model(input_ids=torch.from_numpy(tokens).long(), pixel_values=pixels)
    if hasattr(model, "logit_bias"):
        sign = 2 * torch.eye(PAIRS, dtype=torch.float64) - 1  # transformers' own eye is float32
        loss: Any = -torch.nn.functional.logsigmoid(sign * found.logits_per_text).sum(-1).mean()
    else:
        target = torch.arange(PAIRS)
        both = (found.logits_per_image, found.logits_per_text)
        loss = sum(torch.nn.functional.cross_entropy(logits, target) for logits in both) / 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if not hasattr(model, "logit_bias"):
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
    return float(loss.detach())


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_ten_steps_agree(kind):
    theirs = build(kind)
    told = {"config": theirs.config.to_dict()}
    model, params = vit_flax.from_state_dict({n: t.clone() for n, t in theirs.state_dict().items()}, **told)
    config = TrainConfig(
        model=model.config, data=DataConfig(batch_size=PAIRS), steps=STEPS,
        loss=LossConfig(name="contrastive" if kind == "CLIP" else "sigmoid"),
        optimizer=OptimizerConfig(learning_rate=1e-3, weight_decay=0.1), schedule=ScheduleConfig(name="constant"),
    ).resolve(PAIRS)  # fmt: skip
    spared = [p for n, p in theirs.named_parameters() if p.ndim < 2 or "position" in n]
    decayed = [p for n, p in theirs.named_parameters() if not (p.ndim < 2 or "position" in n)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": spared, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    state = jax.jit(partial(init_state, config=config))(jax.random.key(0), params=params)
    step = jax.jit(partial(train_step, config=config), donate_argnums=0)
    reached = []
    for images, tokens in batches():
        expected = step_torch(theirs, optimizer, images, tokens)
        state, scalars = step(state, {"image": images, "label": tokens})
        np.testing.assert_allclose(float(scalars["loss"]), expected, rtol=FLOAT64_RELATIVE)
        reached.append(float(state.params["logit_scale"]) == math.log(100))
    assert kind == "Siglip" or any(reached)
    ours = vit_flax.to_state_dict(model, state.params, "huggingface_clip" if kind == "CLIP" else "huggingface_siglip")
    largest = max(float(tensor.norm()) for tensor in theirs.state_dict().values())
    for name, tensor in theirs.state_dict().items():
        error = float(np.linalg.norm(ours[name] - tensor.numpy()))
        assert error <= FLOAT64_RELATIVE * max(float(tensor.norm()), 1e-3 * largest), (name, error)
