"""Linear segmentation: a head trained on the frozen tokens of a Vision Transformer, and its mean IoU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int, PyTree

from vit_flax.convert.moves import Tensors, plan, to_params, to_tensors
from vit_flax.convert.segmentation_head import HEAD_RULES
from vit_flax.inference import Predictor
from vit_flax.models.feature_maps import resize_maps
from vit_flax.models.intermediates import Intermediates
from vit_flax.models.resample import bilinear
from vit_flax.models.segmentation_head import STATISTICS, SegmentationHead
from vit_flax.preprocessing import torch_resize
from vit_flax.train.data.mask_folder import IGNORED, MaskFolder


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentationConfig:
    """The training of a linear segmentation head."""

    epochs: int = 20
    batch_size: int = 16
    learning_rate: float = 1e-2
    weight_decay: float = 1e-4
    seed: int = 0
    layers: tuple[int, ...] = (-1,)  # blocks whose tokens are concatenated as the head's input

    def __post_init__(self) -> None:
        """Checks the numbers."""
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if not self.learning_rate > 0 or not self.weight_decay >= 0:
            raise ValueError(
                f"learning_rate {self.learning_rate} and weight_decay {self.weight_decay} must be positive"
            )


@dataclasses.dataclass(frozen=True)
class Scores:
    """A confusion matrix summed over all labelled pixels, and its metrics."""

    confusion: np.ndarray  # (truth, prediction)

    @property
    def iou(self) -> np.ndarray:
        """Intersection over union of each class; NaN for one neither present nor predicted."""
        hits = np.diag(self.confusion).astype(float)
        union = self.confusion.sum(0) + self.confusion.sum(1) - hits
        return np.divide(hits, union, out=np.full_like(hits, np.nan), where=union > 0)

    @property
    def mean_iou(self) -> float:
        """Mean IoU over the classes that are present or predicted."""
        return float(np.nanmean(self.iou))

    @property
    def accuracy(self) -> float:
        """Pixel accuracy."""
        return float(np.trace(self.confusion) / max(self.confusion.sum(), 1))


def frozen_grids(predictor: Predictor, data: MaskFolder, layers: tuple[int, ...]) -> Float[np.ndarray, "n h w c"]:
    """Returns the tokens after some blocks, normalised as after the last one and joined, of every image.

    Raises:
        ValueError: their grids are not of one size.
    """
    config = predictor.model.config
    grids = {config.grid_before(number % config.depth + 1) for number in layers}
    if len(grids) > 1:
        told = " and ".join(f"{height}x{width}" for height, width in sorted(grids, reverse=True))
        raise ValueError(f"blocks {layers} have grids of {told}, which cannot be joined: name blocks of one of them")
    asked = Intermediates(indices=layers, norm=True)
    found = predictor.intermediates([image for image, _ in data.pairs], asked)
    return np.concatenate(list(found.values()), axis=-1)


def labels_of(data: MaskFolder, size: tuple[int, int]) -> Int[np.ndarray, "n i j"]:
    """Returns the masks of a split, each resized to `size` by nearest neighbour."""
    found = np.empty((len(data.pairs), *size), np.int32)
    for number in range(len(found)):
        found[number] = torch_resize.resize(data.mask(number)[..., None], size, "nearest")[..., 0]
    return found


def segmentation_loss(logits: Float[Array, "b h w k"], labels: Int[Array, "b i j"]) -> Float[Array, ""]:
    """Returns the mean cross-entropy of labelled pixels, logits upsampled bilinearly to the labels' size.

    Reference: torch.nn.functional.cross_entropy(interpolate(logits, mode="bilinear"), labels, ignore_index=255).
    """
    large = resize_maps(logits, (labels.shape[1], labels.shape[2]), corners=False)
    known = labels != IGNORED
    losses = optax.softmax_cross_entropy_with_integer_labels(large, jnp.where(known, labels, 0))
    return jnp.where(known, losses, 0).sum() / jnp.maximum(known.sum(), 1)


def train_head(
    grids: Float[np.ndarray, "n h w c"],
    labels: Int[np.ndarray, "n i j"],
    num_classes: int,
    config: SegmentationConfig,
    after_epoch: Callable[[int, float, PyTree], None] = lambda epoch, loss, variables: None,
) -> tuple[SegmentationHead, PyTree]:
    """Returns a head trained on grids of tokens, and its variables; equal seeds give equal numbers.

    `after_epoch` is called with the epoch, from 1, its mean loss, and the variables so far.
    """
    head = SegmentationHead(num_classes)
    variables = head.init(jax.random.key(config.seed), jnp.zeros((1, *grids.shape[1:]), jnp.float32))
    size = min(config.batch_size, len(grids))
    steps = len(grids) // size
    schedule = optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps)
    optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)
    state = optimizer.init(variables["params"])
    step = jax.jit(partial(_step, head, optimizer))
    rng = np.random.default_rng(config.seed)
    for epoch in range(1, config.epochs + 1):
        order, losses = rng.permutation(len(grids)), []
        for start in range(0, steps * size, size):
            chosen = order[start : start + size]
            variables, state, loss = step(variables, state, grids[chosen], labels[chosen])
            losses.append(float(loss))
        after_epoch(epoch, float(np.mean(losses)), variables)
    return head, variables


def _step(
    head: SegmentationHead, optimizer: optax.GradientTransformation, variables: Any, state: Any, grids: Any, labels: Any
) -> tuple[Any, Any, Array]:
    def loss_of(params: Any) -> tuple[Array, Any]:
        given = {**variables, "params": params}
        logits, changed = head.apply(given, grids, train=True, mutable=[STATISTICS])
        return segmentation_loss(logits, labels), changed

    (loss, changed), gradients = jax.value_and_grad(loss_of, has_aux=True)(variables["params"])
    updates, state = optimizer.update(gradients, state, variables["params"])
    return {**changed, "params": optax.apply_updates(variables["params"], updates)}, state, loss


def segment(
    head: SegmentationHead, variables: PyTree, grid: Float[np.ndarray, "h w c"], size: tuple[int, int]
) -> Int[np.ndarray, "i j"]:
    """Returns the class of every pixel of an image of `size`: logits are upsampled before the argmax."""
    scores = np.asarray(_scores(head, variables, grid[None])[0])
    rows, columns = (bilinear(old, new) for old, new in zip(scores.shape[:2], size, strict=True))
    return np.einsum("ih,jw,hwk->ijk", rows, columns, scores, optimize=True).argmax(-1)


@partial(jax.jit, static_argnums=0)
def _scores(head: SegmentationHead, variables: Any, grids: Any) -> Any:
    return head.apply(variables, grids)


def evaluate_head(
    head: SegmentationHead, variables: PyTree, grids: Float[np.ndarray, "n h w c"], data: MaskFolder
) -> Scores:
    """Evaluates a head on a split, at each mask's own size."""
    count = head.num_classes
    confusion = np.zeros((count, count), np.int64)
    for number, grid in enumerate(grids):
        mask = data.mask(number)
        known = mask != IGNORED
        found = segment(head, variables, grid, (mask.shape[0], mask.shape[1]))
        pairs = mask[known].astype(np.int64) * count + found[known]
        confusion += np.bincount(pairs, minlength=count**2).reshape(count, count)
    return Scores(confusion)


def head_tensors(variables: PyTree) -> dict[str, np.ndarray]:
    """Returns a head's variables under the names of DINOv2's files, every value bit for bit."""
    flat: dict[str, Any] = flatten_dict(variables, sep="/")  # pyright: ignore[reportAssignmentType]
    return to_tensors(flat, HEAD_RULES)


def head_variables(tensors: Tensors) -> tuple[SegmentationHead, PyTree]:
    """Returns the head of such tensors, and its variables.

    Raises:
        ConversionError: a tensor is missing, unexpected or misshapen; all are listed.
    """
    shapes: Mapping[str, tuple[int, ...]] = tensors.shapes
    classes, width = (*shapes.get("decode_head.conv_seg.weight", ()), 1, 1)[:2]
    head = SegmentationHead(classes)
    made = jax.eval_shape(head.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1, 1, width), jnp.float32))
    expected: dict[str, Any] = flatten_dict(made, sep="/")  # pyright: ignore[reportAssignmentType]
    steps = plan(shapes, HEAD_RULES, {path: leaf.shape for path, leaf in expected.items()})
    return head, unflatten_dict(to_params(tensors, steps), sep="/")
