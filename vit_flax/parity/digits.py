"""The embedded default of `vit-flax compare`: a small ViT trained in torch on scikit-learn's digits."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_flax.convert import get_layout
from vit_flax.models import Precision, build_model, no_weight_decay, weight_decay_mask
from vit_flax.parity import figures, worked_example
from vit_flax.parity.compare import Row, Subject, compare_components, compare_gradients, require_x64, subject_of
from vit_flax.parity.intermediates import compare_intermediates
from vit_flax.parity.mutations import Mutation
from vit_flax.parity.record import INPUT
from vit_flax.parity.report import Check, Report
from vit_flax.parity.steps import compare_steps
from vit_flax.pretrained import from_state_dict

# Offset of the position table: every LayerNorm then sees inputs of mean 256 and standard deviation near 1.
STRESS = 256.0
LAYOUT = "explained"
UNBROKEN = Mutation("none", "nothing broken", "", "")
UNCHANGED = Precision()  # everything in the dtype of images and parameters


def compare_digits(
    num_steps: int = 10,
    mutation: Mutation | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> Report:
    """Converts the trained reference and compares it with the Flax model on scikit-learn's digits.

    Args:
        num_steps: optimiser steps to take in both frameworks.
        mutation: a deliberate error, applied to the conversion or the Flax model.
        say: called with each stage's name, for a progress line.

    Raises:
        ValueError: JAX is in 32-bit mode.
        ModuleNotFoundError: torch, optax or scikit-learn is missing.
    """
    require_x64()
    if mutation is None:
        return _compare(num_steps, UNBROKEN, say)
    with mutation.applied():
        report = _compare(num_steps, mutation, say)
    report.mutation = mutation.name
    return report


def _compare(num_steps: int, mutation: Mutation, say: Callable[[str], None]) -> Report:
    start = time.perf_counter()
    case = DigitsCase(mutation, num_steps)
    report = Report(
        "A ViT trained in torch on handwritten digits, and the same model in Flax", case.model.config.to_dict()
    )
    report.checks.append(_round_trip(case.subject))
    for section, compare in case.comparisons():
        say(f"comparing {section}")
        report.sections[section] = compare()
    report.torch_losses, report.flax_losses = case.torch_losses, case.flax_losses
    say(f"labelling all {len(case.labels)} digits in both frameworks")
    report.checks.append(_labels(case.subject, case.images, case.labels))
    say("walking through the tutorial's worked example")
    report.worked_example = worked_example.walk()
    report.figures = figures.digits_figures(case.module, case.images, case.labels, case.model.config)
    report.seconds = time.perf_counter() - start
    return report


class DigitsCase:
    """The trained reference, the Flax model of the same weights under a mutation, and their comparisons."""

    def __init__(self, mutation: Mutation, num_steps: int = 10, batch: int = 32, policy: Precision = UNCHANGED) -> None:
        """Converts the reference, to compute under `policy`; the mutation's patches must be applied already."""
        from vit_flax.reference.digits import digits_images, load_digits_reference

        self.mutation, self.num_steps, self.batch, self.policy = mutation, num_steps, batch, policy
        self.module = load_digits_reference().double()
        torch_images, torch_labels = digits_images()
        self.images, self.labels = torch_images.double().numpy(), torch_labels.numpy()
        self.subject, self.model = _subject(self.module, mutation, policy)
        self.torch_losses: list[float] = []
        self.flax_losses: list[float] = []

    def comparisons(self) -> Iterator[tuple[str, Callable[[], list[Row]]]]:
        """Yields each section's name and the function that computes its rows."""
        images = self.images[: self.batch]
        yield "components", lambda: compare_components(self.subject, images)
        yield "intermediates", lambda: compare_intermediates(self.subject, self.model, images)
        stressed = _stressed(self.module)
        yield "stressed", lambda: compare_components(_subject(stressed, self.mutation, self.policy)[0], images)
        yield "gradients", lambda: compare_gradients(self.subject, images)
        if self.num_steps:
            yield "steps", self._steps

    def _steps(self) -> list[Row]:
        order = np.random.default_rng(0).permutation(len(self.labels))
        chunks = [order[(i * self.batch) % len(order) :][: self.batch] for i in range(self.num_steps)]
        mask = weight_decay_mask(self.model.config, self.subject.params)
        if self.mutation.decay_everything:
            mask = jax.tree.map(lambda _: True, self.subject.params)
        result = compare_steps(
            self.subject,
            [(self.images[chunk], self.labels[chunk]) for chunk in chunks],
            mask,
            no_weight_decay(self.model.config),
            flax_optimizer=self.mutation.optimizer,
        )
        self.torch_losses, self.flax_losses = result.torch_losses, result.flax_losses
        return result.rows


def _subject(module: Any, mutation: Mutation, policy: Precision) -> tuple[Subject, Any]:
    layout = get_layout(LAYOUT)
    tensors: Any = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    height, width = module.patch_tokens.img_size[1:]
    heads = module.backbone.blocks[0].attn.num_heads
    if mutation.tensors is not None:
        tensors = mutation.tensors(tensors)
    model, params = from_state_dict(tensors, LAYOUT, num_heads=heads, image_size=(height, width))
    model = model.clone(precision=policy)
    subject = subject_of(module, model, params, layout)
    if policy.stored is not None:  # attention then multiplies by these kernels head by head, without calling the layers
        whole = [pair for pair in subject.pairs if not pair[1].removesuffix(INPUT).endswith(("attn/qkv", "attn/proj"))]
        subject = dataclasses.replace(subject, pairs=tuple(whole))
    if mutation.config is not None:  # of the forward pass alone: the layout cannot export every config
        model = build_model(model.config.replace(**mutation.config(model.config)), precision=policy)
        subject = dataclasses.replace(subject, function=lambda p, images: model.apply({"params": p}, images))
    if mutation.images is not None:
        subject = dataclasses.replace(subject, to_flax=mutation.images)
    return subject, model


def _stressed(module: Any) -> Any:
    import torch

    module = copy.deepcopy(module)
    with torch.no_grad():
        module.backbone.pos_embed += STRESS
    return module


def _round_trip(subject: Subject) -> Check:
    tensors = {name: tensor.numpy() for name, tensor in subject.torch_module.state_dict().items()}
    assert subject.export is not None
    back = subject.export(subject.params)
    same = sum(name in back and np.array_equal(back[name], tensor) for name, tensor in tensors.items())
    text = f"{same} of {len(tensors)} tensors come back from Flax bit for bit, under the same names"
    return Check(text, same == len(tensors) == len(back))


def _labels(subject: Subject, images: np.ndarray, labels: np.ndarray) -> Check:
    import torch

    with torch.no_grad():
        theirs = subject.torch_module(torch.from_numpy(images)).argmax(-1).numpy()
    ours = np.asarray(jax.jit(subject.function)(subject.params, jnp.asarray(subject.to_flax(images))).argmax(-1))
    same, right = int((ours == theirs).sum()), int((ours == labels).sum())
    text = f"{same:,} of {len(labels):,} digits get the same label in both frameworks ({right:,} the right one)"
    return Check(text, same == len(labels))
