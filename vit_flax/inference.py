"""Batched inference over any number of images: each method is compiled once for a shape, images decoded in threads."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vit_flax.array_writer import ArrayWriter
from vit_flax.attention_weights import AttentionMaps
from vit_flax.batching import ImageBatches, Images
from vit_flax.image_sizes import at_image_size
from vit_flax.microbatches import Device, in_microbatches, microbatch_size
from vit_flax.models import VisionTransformer
from vit_flax.models.intermediates import Intermediates, taken_blocks
from vit_flax.models.precision import accumulator_dtype, compiled_for, with_kernels_in
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.preprocessing.naflex import model_inputs

# 'logits', 'features', 'embeddings', tokens after blocks, or attention weights
Method = str | Intermediates | AttentionMaps
AHEAD = 2  # batches computed ahead of the one whose result is read


class Predictor:
    """Applies a model to images in batches of one shape, so that each method is compiled once.

    Images are an array (N, H, W, C) or an iterable of single ones. Floating-point images are preprocessed already;
    uint8 images, file contents and paths go through `transform`. A NaFlex model whose transform makes patches takes
    images of any size in whole patches; its results include the tokens of padding. Results are NumPy arrays in the
    images' order. On one CPU device a batch is computed in microbatches that stay in its caches
    (`vit_flax.microbatches`).

    Args:
        model: the linen module.
        params: its parameters, which are put on the devices once.
        batch_size: images computed together; fewer are padded to it.
        dtype: dtype of the matrix products, for example jnp.bfloat16; None: the model's own. The kernels are stored in
            it, which gives the same numbers as a cast in every product.
        transform: preprocessing of uint8 images, file contents and paths; None: such images are refused.
        threads: decoding threads; None: one per core, at most 16.
        devices: devices that share each batch; None: JAX's default device.
        resample: how position embeddings are resized for images of other sizes (see `vit_flax.at_image_size`), with one
            compilation per size; None: such images are refused.

    Raises:
        ValueError: the batch size is no multiple of the number of devices, or the transform's shape or patches are not
            the model's.
    """

    def __init__(
        self,
        model: VisionTransformer,
        params: PyTree,
        batch_size: int = 64,
        dtype: DTypeLike | None = None,
        transform: Preprocessing | None = None,
        threads: int | None = None,
        devices: Sequence[Device] | None = None,
        resample: str | None = None,
    ) -> None:
        devices = list(devices or jax.devices()[:1])
        if batch_size < 1 or batch_size % len(devices):
            raise ValueError(f"batch_size {batch_size} is not a positive multiple of {len(devices)} devices")
        self.model = model.clone(dtype=dtype) if dtype is not None else model
        self.image_shape = (*model.config.image_size, model.config.in_chans)
        self.batch_size, self.resample = batch_size, resample
        self._batches = ImageBatches.for_model(model.config, batch_size, transform, threads, resample is not None)
        mesh = jax.sharding.Mesh(np.asarray(devices), ("data",))
        self._sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
        self.params = jax.device_put(with_kernels_in(params, dtype), everywhere)
        self._devices, self._everywhere = devices, everywhere
        self._methods: dict[tuple[tuple[int, ...], Method], Any] = {}
        # by the images' shape
        self._sized: dict[tuple[int, ...], tuple[VisionTransformer, Any]] = {
            self.image_shape: (self.model, self.params)
        }

    @property
    def transform(self) -> Preprocessing | None:
        """What is done to images that are not normalised yet."""
        return self._batches.transform

    def _compiled(self, shape: tuple[int, ...], method: Method) -> Any:
        """Returns the jitted function of (parameters, images) of a method for images, or padded patches, of a shape."""
        if (shape, method) in self._methods:
            return self._methods[shape, method]
        model = self._at(shape)[0]
        config = model.config
        machine = (self._devices[0].platform, len(self._devices), self._devices[0].device_kind)
        size = microbatch_size(config, self.batch_size, model.policy.compute, self._devices)
        if isinstance(method, Intermediates):
            taken_blocks(method.indices, config.depth)
            asked = {**dataclasses.asdict(method), "stop_early": True, "intermediates_only": True}
            jitted = _jitted(_applied(model, "forward_intermediates", asked), size, machine)
        elif isinstance(method, AttentionMaps):
            jitted = _jitted(method.function(model), size, machine)
        elif method == "embeddings":
            pooled = model.clone(config=config.replace(num_classes=0)) if config.num_classes else model
            jitted = _jitted(_applied(pooled), size, machine)
        else:
            jitted = _jitted(_applied(model, None if method == "logits" else method), size, machine)
        self._methods[shape, method] = jitted
        return jitted

    def _at(self, shape: tuple[int, ...]) -> tuple[VisionTransformer, Any]:
        """Returns the model for images of a shape, and its parameters."""
        if self._batches.is_padded:
            return self.model, self.params
        if shape not in self._sized:
            assert self.resample is not None
            model, params = at_image_size(self.model, self.params, (shape[0], shape[1]), self.resample)
            self._sized[shape] = (model, jax.device_put(params, self._everywhere))
        return self._sized[shape]

    def logits(self, images: Images) -> np.ndarray:
        """Returns the logits (N, num_classes)."""
        return self.collect("logits", images)

    def features(self, images: Images) -> np.ndarray:
        """Returns all tokens after the final norm, (N, tokens, embed_dim), prefix tokens first."""
        return self.collect("features", images)

    def embeddings(self, images: Images) -> np.ndarray:
        """Returns the pooled embeddings, the input of the head: one vector per image."""
        return self.collect("embeddings", images)

    def intermediates(self, images: Images, asked: Intermediates) -> dict[str, np.ndarray]:
        """Returns the tokens after blocks by name: 'layer_2' and so on, prefix tokens 'layer_2_prefix'.

        Blocks after the last requested one are not computed.

        Raises:
            ValueError: there is no such block.
        """
        return self._named(asked, self.collect(asked, images))

    def attention(self, images: Images, asked: AttentionMaps) -> dict[str, np.ndarray]:
        """Returns the attention weights (N, heads, queries, keys) of blocks, by 'layer_2' and so on.

        Raises:
            ValueError: there is no such block, or it has window attention.
        """
        return self.collect(asked, images)

    def _named(self, method: Method, found: Any) -> dict[str, np.ndarray]:
        """Returns a method's results by the names of their arrays on disk."""
        if isinstance(method, AttentionMaps):
            return dict(found)
        if not isinstance(method, Intermediates):
            return {"features": found}
        named: dict[str, np.ndarray] = {}
        for number, part in zip(taken_blocks(method.indices, self.model.config.depth), found, strict=True):
            patches, prefix = part if isinstance(part, tuple) else (part, None)
            named[f"layer_{number}"] = patches
            if prefix is not None:
                named[f"layer_{number}_prefix"] = prefix
        return named

    def write(self, writer: ArrayWriter, method: Method, images: Images, bad: dict[int, str] | None = None) -> None:
        """Appends the results of a method to an ArrayWriter, batch by batch, so that they need not fit in memory.

        Arrays are 'features', or those of `intermediates` or `attention`; dtypes narrower than float32 are widened to
        it. Images that are in `bad` afterwards are left out. Tokens of padded patches come with 'spatial_shapes', each
        image's rows and columns; tokens beyond rows times columns are padding.

        Raises:
            ValueError: images of different sizes give arrays of different shapes.
        """
        first = 0
        found: Any
        for found, grids in self._results(method, images, bad):
            named = self._named(method, found)
            count = len(next(iter(named.values())))
            if grids is not None and method not in ("logits", "embeddings"):
                named["spatial_shapes"] = grids
            good = [row for row in range(count) if not bad or first + row not in bad]
            rows = {name: _widened(array[good]) for name, array in named.items()}
            try:
                writer.append(rows)
            except ValueError as error:
                raise ValueError(
                    f"images of different sizes have different numbers of tokens: {error}; write each size apart"
                ) from error
            first += count

    @overload
    def stream(self, method: str, images: Images, bad: dict[int, str] | None = None) -> Iterator[np.ndarray]: ...
    @overload
    def stream(
        self, method: Intermediates, images: Images, bad: dict[int, str] | None = None
    ) -> Iterator[list[PyTree]]: ...
    @overload
    def stream(
        self, method: AttentionMaps, images: Images, bad: dict[int, str] | None = None
    ) -> Iterator[dict[str, np.ndarray]]: ...
    def stream(self, method: Method, images: Images, bad: dict[int, str] | None = None) -> Iterator[PyTree]:
        """Yields the results of a method batch by batch, never holding more than a few batches of images.

        Args:
            method: 'logits', 'features', 'embeddings', an Intermediates or an AttentionMaps.
            images: as for the class.
            bad: receives the index of every unreadable image and the reason; its result is that of a zero image.

        Raises:
            BadImageError: an image cannot be read and `bad` is None; the message has its path or index.
            ValueError: an image has another shape than the model's.
        """
        for found, _ in self._results(method, images, bad):
            yield found

    def _results(
        self, method: Method, images: Images, bad: dict[int, str] | None
    ) -> Iterator[tuple[Any, np.ndarray | None]]:
        """Yields the results of `stream` with the patch grids (B, 2) of padded patches, otherwise None."""
        waiting: collections.deque[Any] = collections.deque()
        for batch, count in self._batches.of(images, bad):
            shape = (batch[0] if isinstance(batch, tuple) else batch).shape[1:]
            compiled, params = self._compiled(shape, method), self._at(shape)[1]
            grids = batch[2][:count] if isinstance(batch, tuple) else None
            waiting.append((compiled(params, jax.device_put(batch, self._sharding)), count, grids))
            if len(waiting) > AHEAD:
                found, count, grids = waiting.popleft()
                yield _first_rows(found, count), grids
        for found, count, grids in waiting:
            yield _first_rows(found, count), grids

    @overload
    def collect(self, method: str, images: Images, bad: dict[int, str] | None = None) -> np.ndarray: ...
    @overload
    def collect(self, method: Intermediates, images: Images, bad: dict[int, str] | None = None) -> list[PyTree]: ...
    @overload
    def collect(
        self, method: AttentionMaps, images: Images, bad: dict[int, str] | None = None
    ) -> dict[str, np.ndarray]: ...
    def collect(self, method: Method, images: Images, bad: dict[int, str] | None = None) -> PyTree:
        """Returns the results of a method without those of images that are in `bad` afterwards.

        Errors are those of `stream`.
        """
        parts: list[Any] = list(self.stream(method, images, bad))
        if not parts:
            empty, _ = self._batches.batch()
            first = empty[0] if isinstance(empty, tuple) else empty
            shapes = jax.eval_shape(self._compiled(first.shape[1:], method), self.params, empty)
            return jax.tree.map(lambda shape: np.zeros((0, *shape.shape[1:]), shape.dtype), shapes)
        if len({leaf.shape[1:] for part in parts for leaf in jax.tree.leaves(part)[:1]}) > 1:
            raise ValueError("images of different sizes have different numbers of tokens: use stream() for them")
        found = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return jax.tree.map(lambda leaf: np.delete(leaf, sorted(bad), axis=0), found) if bad else found


def _applied(model: VisionTransformer, method: str | None = None, asked: Any = None) -> Callable[[PyTree, PyTree], Any]:
    """Returns the function of (parameters, images) that applies a method."""

    def apply(params: PyTree, images: PyTree) -> Any:
        inputs, named = model_inputs(images)
        return model.apply({"params": params}, inputs, **named, **(asked or {}), method=method)

    return apply


def _jitted(function: Callable[[PyTree, PyTree], Any], size: int, machine: tuple[str, int, str]) -> Any:
    """Returns the jitted function of (parameters, images) that computes `size` images at a time."""

    def compute(params: PyTree, images: PyTree) -> Any:
        with compiled_for(*machine):
            return in_microbatches(lambda part: function(params, part), images, size)

    return jax.jit(compute)


def _widened(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind == "i" else array.astype(accumulator_dtype(array.dtype))


def _first_rows(result: PyTree, count: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], result)
