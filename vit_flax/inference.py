"""Running a model over any number of images: one compiled shape, decoding beside computing."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vit_flax.array_writer import ArrayWriter
from vit_flax.image_sizes import at_image_size
from vit_flax.microbatches import Device, in_microbatches, microbatch_size
from vit_flax.models import VisionTransformer
from vit_flax.models.attention import WEIGHTS
from vit_flax.models.intermediates import Intermediates, taken_blocks
from vit_flax.models.loop import NO_REMAT
from vit_flax.models.precision import accumulator_dtype, compiled_for
from vit_flax.preprocessing.decode import BadImageError
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.preprocessing.naflex import to_patches

Patches = tuple[np.ndarray, np.ndarray, np.ndarray]  # what `to_patches` returns: patches, mask, grids
Image = np.ndarray | jax.Array | bytes | str | os.PathLike[str]
Images = np.ndarray | jax.Array | Iterable[Image]
Method = str | Intermediates  # 'logits', 'features', 'embeddings', or tokens after blocks
AHEAD = 2  # batches decoded, and batches computed, beyond the one that is waited for
MAX_THREADS = 16


class Predictor:
    """Applies a model to images in batches of one shape, so that each method is compiled once.

    Images are an array (N, H, W, C) or an iterable of single ones. Floating point ones are what the model reads,
    already normalised; uint8 ones, file contents and paths go through `transform`. A NaFlex model with a transform to
    match gets images of whole patches, of any size; tokens of its padding are among the results. Results are NumPy
    arrays in the images' order. On one CPU device a batch is computed in parts that stay in its caches
    (`vit_flax.microbatches`).

    Args:
        model: the linen module.
        params: its parameters; they are put on the device here, once.
        batch_size: images computed together; fewer are padded to it.
        dtype: of the matrix products, for example jnp.bfloat16; None: the model's own. The kernels are kept in it,
            which gives the same numbers as casting them in every product.
        transform: what is done to images that are not normalised yet; None: such images are refused.
        threads: that decode; None: as many as there are cores, at most 16.
        devices: that share each batch; None: JAX's default device.
        resample: how positions are resized for images of other sizes than the model's (see `vit_flax.at_image_size`),
            one compilation a size; None: such images are refused.

    Raises:
        ValueError: the batch does not divide into the devices, or the transform gives another shape than the model's,
            or other patches.
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
        self.batch_size, self.transform, self.resample = batch_size, transform, resample
        self._most = _max_num_patches(model, transform)
        given = (*(transform.image_size or ()), transform.channels) if transform else ()
        if transform and not transform.varies and given != self.image_shape:
            raise ValueError(f"the transform gives images of {given}, the model needs {self.image_shape}")
        self._threads = threads or min(MAX_THREADS, os.cpu_count() or 1)
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

    def _compiled(self, shape: tuple[int, ...], method: Method) -> Any:
        """Returns the jitted function of (parameters, images) that computes a method for images, or rows of patches."""
        if (shape, method) in self._methods:
            return self._methods[shape, method]
        model = self._at(shape)[0]
        config = model.config
        machine = (self._devices[0].platform, len(self._devices), self._devices[0].device_kind)
        size = microbatch_size(config, self.batch_size, model.policy.compute, self._devices)
        if isinstance(method, Intermediates):
            taken_blocks(method.indices, config.depth)
            asked = {**dataclasses.asdict(method), "stop_early": True, "intermediates_only": True}
            jitted = _jitted(model, size, machine, "forward_intermediates", asked)
        elif method == "embeddings":
            pooled = model.clone(config=config.replace(num_classes=0)) if config.num_classes else model
            jitted = _jitted(pooled, size, machine)
        else:
            jitted = _jitted(model, size, machine, None if method == "logits" else method)
        self._methods[shape, method] = jitted
        return jitted

    def _at(self, shape: tuple[int, ...]) -> tuple[VisionTransformer, Any]:
        """Returns the model for images of a shape, and its parameters."""
        if self._most is not None:
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
        """Returns what the head reads: one vector an image."""
        return self.collect("embeddings", images)

    def intermediates(self, images: Images, asked: Intermediates) -> dict[str, np.ndarray]:
        """Returns the tokens after blocks, by 'layer_2' and so on; prefix tokens by 'layer_2_prefix'.

        Blocks after the last one that is asked for are not computed.

        Raises:
            ValueError: there is no such block.
        """
        return self._named(asked, self.collect(asked, images))

    def _named(self, asked: Intermediates, found: Any) -> dict[str, np.ndarray]:
        named: dict[str, np.ndarray] = {}
        for number, part in zip(taken_blocks(asked.indices, self.model.config.depth), found, strict=True):
            patches, prefix = part if isinstance(part, tuple) else (part, None)
            named[f"layer_{number}"] = patches
            if prefix is not None:
                named[f"layer_{number}_prefix"] = prefix
        return named

    def write(self, writer: ArrayWriter, method: Method, images: Images, bad: dict[int, str] | None = None) -> None:
        """Appends the results of a method to an ArrayWriter, batch by batch, so that they need not fit in memory.

        Arrays are 'features', or those of `intermediates`; what is narrower than float32 is widened to it. Images that
        are named in `bad` afterwards are left out. Tokens of padded patches come with 'spatial_shapes', each image's
        rows and columns, of which it has as many tokens; the rest is padding.

        Raises:
            ValueError: images of different sizes give arrays of different shapes.
        """
        first = 0
        found: Any
        for found, grids in self._results(method, images, bad):
            named: dict[str, np.ndarray] = (
                self._named(method, found) if isinstance(method, Intermediates) else {"features": found}
            )
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
    def stream(self, method: Method, images: Images, bad: dict[int, str] | None = None) -> Iterator[PyTree]:
        """Yields the results of a method batch by batch, never holding more than a few batches of images.

        Args:
            method: 'logits', 'features', 'embeddings', or an Intermediates.
            images: as above.
            bad: gets the number of every image that cannot be read, and why; its result is that of a black one.

        Raises:
            BadImageError: an image cannot be read, and there is no `bad`; its path or number is named.
            ValueError: an image is of another shape than the model's.
        """
        for found, _ in self._results(method, images, bad):
            yield found

    def _results(
        self, method: Method, images: Images, bad: dict[int, str] | None
    ) -> Iterator[tuple[Any, np.ndarray | None]]:
        """Yields what `stream` does, and the grid of each image's patches where these are padded."""
        waiting: collections.deque[Any] = collections.deque()
        for batch, count in self._batches(images, bad):
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
    def collect(self, method: Method, images: Images, bad: dict[int, str] | None = None) -> PyTree:
        """Returns the results of a method; those of images that are named in `bad` afterwards are left out."""
        parts: list[Any] = list(self.stream(method, images, bad))
        if not parts:
            empty, _ = self._batch([])
            first = empty[0] if isinstance(empty, tuple) else empty
            shapes = jax.eval_shape(self._compiled(first.shape[1:], method), self.params, empty)
            return jax.tree.map(lambda shape: np.zeros((0, *shape.shape[1:]), shape.dtype), shapes)
        if len({leaf.shape[1:] for part in parts for leaf in jax.tree.leaves(part)[:1]}) > 1:
            raise ValueError("images of different sizes have different numbers of tokens: use stream() for them")
        found = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
        return jax.tree.map(lambda leaf: np.delete(leaf, sorted(bad), axis=0), found) if bad else found

    def _batches(self, images: Images, bad: dict[int, str] | None) -> Iterator[tuple[np.ndarray | Patches, int]]:
        """Yields batches of images of one shape, padded where there are fewer, with the number of images in each."""
        chosen: list[np.ndarray] = []
        for image in self._prepared(images, bad):
            if chosen and image.shape != chosen[0].shape and self._most is None:
                yield self._batch(chosen)
                chosen = []
            chosen.append(image)
            if len(chosen) == self.batch_size:
                yield self._batch(chosen)
                chosen = []
        if chosen:
            yield self._batch(chosen)

    def _batch(self, chosen: list[np.ndarray]) -> tuple[np.ndarray | Patches, int]:
        if self._most is not None:
            missing = [self._black()] * (self.batch_size - len(chosen))
            return to_patches([*chosen, *missing], self.model.config.patch_size[0], self._most), len(chosen)
        shape = chosen[0].shape if chosen else self.image_shape
        dtype = np.result_type(*{image.dtype for image in chosen}) if chosen else np.float32
        batch = np.zeros((self.batch_size, *shape), dtype)
        for position, image in enumerate(chosen):
            batch[position] = image
        return batch, len(chosen)

    def _black(self) -> np.ndarray:
        """Returns an image that stands for one that is missing."""
        shape = self.image_shape if self._most is None else (*self.model.config.patch_size, self.image_shape[-1])
        return np.zeros(shape, np.float32)

    def _prepared(self, images: Images, bad: dict[int, str] | None) -> Iterator[np.ndarray]:
        """Yields the images as the model reads them, in their order; threads work a few batches ahead."""
        if isinstance(images, jax.Array):
            images = np.asarray(images)
        if isinstance(images, np.ndarray) and images.dtype != np.uint8:
            if images.ndim != 4:
                raise ValueError(f"images must be (N, height, width, channels), got {images.shape}")
            yield from (self._checked(index, image) for index, image in enumerate(images))
            return
        if isinstance(images, str | bytes | os.PathLike):
            raise ValueError("give a list of images, also where there is only one")
        numbered: Iterable[tuple[int, Image]] = enumerate(images)
        pending: collections.deque[Any] = collections.deque()
        with ThreadPoolExecutor(self._threads, thread_name_prefix="vit-flax-decode") as pool:
            try:
                for number, image in numbered:
                    pending.append(pool.submit(self._prepare, number, image, bad))
                    if len(pending) >= AHEAD * self.batch_size:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def _prepare(self, number: int, image: Image, bad: dict[int, str] | None) -> np.ndarray:
        if isinstance(image, jax.Array):
            image = np.asarray(image)
        if isinstance(image, np.ndarray) and image.dtype != np.uint8:
            return self._checked(number, image)
        if self.transform is None:
            raise ValueError(f"{_name(number, image)}: not normalised yet: the predictor needs a transform")
        try:
            prepared = self.transform(image)
        except BadImageError as error:
            if bad is not None:
                bad[number] = str(error)
                return self._black()
            raise BadImageError(f"{_name(number, image)}: {error}") from error
        if prepared.shape != self.image_shape and self.resample is None and self._most is None:
            raise ValueError(
                f"{_name(number, image)}: is prepared to {prepared.shape}, the model needs {self.image_shape}"
            )
        return prepared

    def _checked(self, number: int, image: np.ndarray) -> np.ndarray:
        fits = image.shape == self.image_shape
        if self._most is not None:
            return self._divided(number, image)
        if self.resample is not None:
            fits = image.ndim == 3 and image.shape[-1] == self.image_shape[-1]
        if not fits or not jnp.issubdtype(image.dtype, jnp.floating):
            raise ValueError(
                f"{_name(number, image)}: {image.shape} of {image.dtype}, the model needs {self.image_shape} floats"
            )
        return image

    def _divided(self, number: int, image: np.ndarray) -> np.ndarray:
        """Returns the image where it is of whole patches, not too many."""
        assert self._most is not None
        side, chans = self.model.config.patch_size[0], self.image_shape[-1]
        fits = image.ndim == 3 and image.shape[-1] == chans and jnp.issubdtype(image.dtype, jnp.floating)
        sides = [divmod(length, side) for length in image.shape[:2]]
        if not fits or any(rest for _, rest in sides) or not 0 < sides[0][0] * sides[1][0] <= self._most:
            needed = f"{chans} channels of floats that divide into 1 to {self._most} patches of {side}"
            raise ValueError(f"{_name(number, image)}: {image.shape} of {image.dtype}, the model needs {needed}")
        return image


def _max_num_patches(model: VisionTransformer, transform: Preprocessing | None) -> int | None:
    """Returns the most patches that a transform cuts images into for a NaFlex model; None: images are of one size."""
    if transform is None or transform.patch_size is None:
        return None
    if not model.config.tokens.pads:
        raise ValueError("the transform cuts images of any size into patches, which the model does not take")
    if model.config.patch_size != (transform.patch_size,) * 2:
        own, theirs = model.config.patch_size, transform.patch_size
        raise ValueError(f"the transform makes patches of {theirs}x{theirs}, the model takes {own[0]}x{own[1]}")
    return transform.max_num_patches


def attention_maps(
    model: VisionTransformer,
    params: PyTree,
    images: jax.Array | np.ndarray | Patches,
    layers: Sequence[int] | None = None,
) -> dict[int, np.ndarray]:
    """Computes the attention weights (B, H, N, N) of blocks, softmax(q k^T scale + bias), prefix tokens first.

    Of differential attention it is the weighted difference of its two maps, of two attentions in a block the heads of
    both.

    Args:
        model: of any family.
        params: its parameters.
        images: (B, H, W, C), prepared; or what `to_patches` returns, for a NaFlex model.
        layers: numbers of blocks, negative ones from the end; None: all.

    Raises:
        ValueError: there is no such block, or it attends inside windows.
    """
    run = attention_function(model, layers)
    return {number: np.asarray(array) for number, array in run(params, images).items()}


def attention_function(
    model: VisionTransformer, layers: Sequence[int] | None = None
) -> Callable[[PyTree, PyTree], dict[int, jax.Array]]:
    """Returns the compiled function of (parameters, images) that gives what `attention_maps` does."""
    numbers = taken_blocks(layers, model.config.depth)
    position = model.config.position
    if parted := [number for number in numbers if not position.sees_all(number)]:
        whole = ", ".join(str(i) for i in range(model.config.depth) if position.sees_all(i)) or "none"
        raise ValueError(f"block {parted[0]} attends inside windows, which are no map of the image; whole: {whole}")
    # whose blocks say what they see, in queries and keys that are not rounded
    plain = model.clone(scan=False, remat=NO_REMAT, precision=model.policy.wide)
    places = {f"blocks_{number}": number for number in numbers}

    def run(params: PyTree, images: PyTree) -> dict[int, Any]:
        inputs, named = _inputs(images)
        _, state = plain.apply({"params": params}, inputs, **named, method="features", mutable=[WEIGHTS])
        weights: dict[int, list[Any]] = {number: [] for number in numbers}
        sown: dict[Any, Any] = flatten_dict(state[WEIGHTS])  # pyright: ignore[reportAssignmentType]
        for path, arrays in sown.items():
            if path[0] in places:
                weights[places[path[0]]].extend(arrays)
        return {number: jnp.concatenate(arrays, axis=1) for number, arrays in weights.items()}

    return jax.jit(run)


def attention_rollout(model: VisionTransformer, params: PyTree, images: np.ndarray | Patches) -> np.ndarray:
    """Computes how much of each patch reaches the class token through all blocks, (N, rows, columns), of sum 1.

    Every block's attention, averaged over its heads, counts half and the skip around it the other half. Where there is
    no class token, it is the mean over the patches. Of patches that `to_patches` returns, all images have one grid.

    Raises:
        ValueError: attention is differential, or there is padding.

    Reference: arXiv 2005.00928.
    """
    config = model.config
    if config.block.startswith("diff"):
        raise ValueError(
            f"block={config.block!r} mixes values by differences of weights, which do not add up to shares"
        )
    grid = config.grid_size
    if isinstance(images, tuple):
        if not images[1].all() or len(np.unique(images[2], axis=0)) > 1:
            raise ValueError("patches of several grids, or padded ones, have no map in common: one image at a time")
        grid = tuple(images[2][0].tolist())
    maps = attention_maps(model, params, images)
    rollout = np.eye(maps[0].shape[-1])
    for weights in maps.values():
        rollout = (weights.astype(np.float64).mean(1) + np.eye(rollout.shape[-1])) / 2 @ rollout
    first = config.num_prefix_tokens
    patches = rollout[:, 0, first:] if config.class_token else rollout[:, first:, first:].mean(1)
    return (patches / patches.sum(-1, keepdims=True)).reshape(len(patches), *grid)


def _name(number: int, image: Image) -> str:
    return str(Path(image)) if isinstance(image, str | os.PathLike) else f"image {number}"


def _jitted(
    model: VisionTransformer, size: int, machine: tuple[str, int, str], method: str | None = None, asked: Any = None
) -> Any:
    """Returns the jitted function of (parameters, images) that applies a method to `size` images at a time."""

    def apply(params: PyTree, images: PyTree) -> Any:
        def of(part: PyTree) -> Any:
            inputs, named = _inputs(part)
            return model.apply({"params": params}, inputs, **named, **(asked or {}), method=method)

        with compiled_for(*machine):
            return in_microbatches(of, images, size)

    return jax.jit(apply)


def _inputs(images: PyTree) -> tuple[Any, dict[str, Any]]:
    """Returns the first argument of a model's methods, and those by name."""
    if not isinstance(images, tuple):
        return images, {}
    patches, mask, grids = images
    return patches, {"mask": mask, "spatial_shapes": grids}


def _widened(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind == "i" else array.astype(accumulator_dtype(array.dtype))


def _first_rows(result: PyTree, count: int) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf)[:count], result)


def with_kernels_in(params: PyTree, dtype: DTypeLike | None) -> PyTree:
    """Returns the parameters with the kernels, which products cast anyhow, in the products' dtype."""
    if dtype is None:
        return params
    flat: dict[tuple[str, ...], Any] = flatten_dict(params)  # pyright: ignore[reportAssignmentType]
    return unflatten_dict({path: leaf.astype(dtype) if path[-1] == "kernel" else leaf for path, leaf in flat.items()})
