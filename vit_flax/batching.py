"""Images of any kind as batches of one shape, decoded ahead in threads."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from vit_flax.config import ViTConfig
from vit_flax.preprocessing.decode import BadImageError
from vit_flax.preprocessing.evaluation import Preprocessing
from vit_flax.preprocessing.naflex import Patches, to_patches

Image = np.ndarray | jax.Array | bytes | str | os.PathLike[str]
Images = np.ndarray | jax.Array | Iterable[Image]
AHEAD = 2  # batches decoded ahead of the one that is read
MAX_THREADS = 16


@dataclasses.dataclass(frozen=True)
class ImageBatches:
    """Makes batches of one shape for a model, of the images that `Predictor` takes."""

    image_shape: tuple[int, ...]  # (height, width, channels) of the model's images
    batch_size: int
    transform: Preprocessing | None
    threads: int
    any_size: bool  # whether images of other sizes are taken; a batch has images of one size
    max_num_patches: int | None  # number of patches that images are cut into, with padding; None: images stay whole
    patch_size: int  # side of these patches; 0: images stay whole

    @classmethod
    def for_model(
        cls,
        config: ViTConfig,
        batch_size: int,
        transform: Preprocessing | None = None,
        threads: int | None = None,
        any_size: bool = False,
    ) -> Self:
        """Returns the batches of a model; `threads` decode, None: one per core, at most 16.

        Raises:
            ValueError: the transform's shape or patches are not the model's.
        """
        shape = (*config.image_size, config.in_chans)
        most = _max_num_patches(config, transform)
        given = (*(transform.image_size or ()), transform.channels) if transform else ()
        if transform and not transform.varies and given != shape:
            raise ValueError(f"the transform gives images of {given}, the model needs {shape}")
        threads = threads or min(MAX_THREADS, os.cpu_count() or 1)
        return cls(shape, batch_size, transform, threads, any_size, most, (transform and transform.patch_size) or 0)

    @property
    def is_padded(self) -> bool:
        """Whether images are cut into padded patches with a mask."""
        return self.max_num_patches is not None

    def of(self, images: Images, bad: dict[int, str] | None) -> Iterator[tuple[np.ndarray | Patches, int]]:
        """Yields batches of images of one shape, padded to the batch size, and the number of images in each."""
        chosen: list[np.ndarray] = []
        for image in self._prepared(images, bad):
            if chosen and image.shape != chosen[0].shape and not self.is_padded:
                yield self.batch(chosen)
                chosen = []
            chosen.append(image)
            if len(chosen) == self.batch_size:
                yield self.batch(chosen)
                chosen = []
        if chosen:
            yield self.batch(chosen)

    def batch(self, chosen: Sequence[np.ndarray] = ()) -> tuple[np.ndarray | Patches, int]:
        """Returns images of one shape as a batch, padded to the batch size, and their number."""
        if self.is_padded:
            missing = [self._black()] * (self.batch_size - len(chosen))
            return to_patches([*chosen, *missing], self.patch_size, self.max_num_patches), len(chosen)
        shape = chosen[0].shape if chosen else self.image_shape
        dtype = np.result_type(*{image.dtype for image in chosen}) if chosen else np.float32
        batch = np.zeros((self.batch_size, *shape), dtype)
        for position, image in enumerate(chosen):
            batch[position] = image
        return batch, len(chosen)

    def _black(self) -> np.ndarray:
        """Returns the zero image of padding and of unreadable images."""
        shape = self.image_shape if not self.is_padded else (self.patch_size, self.patch_size, self.image_shape[-1])
        return np.zeros(shape, np.float32)

    def _prepared(self, images: Images, bad: dict[int, str] | None) -> Iterator[np.ndarray]:
        """Yields the preprocessed images in order; threads work up to AHEAD batches ahead."""
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
        with ThreadPoolExecutor(self.threads, thread_name_prefix="vit-flax-decode") as pool:
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
        if prepared.shape != self.image_shape and not self.any_size and not self.is_padded:
            raise ValueError(
                f"{_name(number, image)}: is prepared to {prepared.shape}, the model needs {self.image_shape}"
            )
        return prepared

    def _checked(self, number: int, image: np.ndarray) -> np.ndarray:
        fits = image.shape == self.image_shape
        if self.is_padded:
            return self._divided(number, image)
        if self.any_size:
            fits = image.ndim == 3 and image.shape[-1] == self.image_shape[-1]
        if not fits or not jnp.issubdtype(image.dtype, jnp.floating):
            raise ValueError(
                f"{_name(number, image)}: {image.shape} of {image.dtype}, the model needs {self.image_shape} floats"
            )
        return image

    def _divided(self, number: int, image: np.ndarray) -> np.ndarray:
        """Returns an image whose size is one of whole patches, at most as many as the transform's."""
        assert self.max_num_patches is not None
        side, chans = self.patch_size, self.image_shape[-1]
        fits = image.ndim == 3 and image.shape[-1] == chans and jnp.issubdtype(image.dtype, jnp.floating)
        sides = [divmod(length, side) for length in image.shape[:2]]
        if not fits or any(rest for _, rest in sides) or not 0 < sides[0][0] * sides[1][0] <= self.max_num_patches:
            needed = f"{chans} channels of floats that divide into 1 to {self.max_num_patches} patches of {side}"
            raise ValueError(f"{_name(number, image)}: {image.shape} of {image.dtype}, the model needs {needed}")
        return image


def _max_num_patches(config: ViTConfig, transform: Preprocessing | None) -> int | None:
    """Returns the transform's max_num_patches for a NaFlex model; None for images of one size."""
    if transform is None or transform.patch_size is None:
        return None
    if not config.tokens.pads:
        raise ValueError("the transform cuts images of any size into patches, which the model does not take")
    if config.patch_size != (transform.patch_size,) * 2:
        own, theirs = config.patch_size, transform.patch_size
        raise ValueError(f"the transform makes patches of {theirs}x{theirs}, the model takes {own[0]}x{own[1]}")
    return transform.max_num_patches


def _name(number: int, image: Image) -> str:
    return str(Path(image)) if isinstance(image, str | os.PathLike) else f"image {number}"
