"""The exported function, of images alone; the parameters are its constants."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vit_flax.export.pixels import prepare_pixels
from vit_flax.models import VisionTransformer
from vit_flax.models.intermediates import taken_blocks
from vit_flax.models.precision import compiled_for, with_kernels_in
from vit_flax.preprocessing.evaluation import Preprocessing

OUTPUTS = ("logits", "features", "intermediates")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """A model's function of images, with names for its outputs."""

    model: VisionTransformer
    params: PyTree
    output: str = "logits"
    layers: tuple[int, ...] = ()  # blocks, of 'intermediates'; (): all
    norm: bool = False  # of 'intermediates': after the final norm
    preprocessing: Preprocessing | None = None
    raw_size: tuple[int, int] | None = None  # (height, width) of uint8 images that the program preprocesses
    dtype: str = "float32"  # dtype of the matrix products

    def __post_init__(self) -> None:
        """Checks the values that do not depend on the file's format."""
        if self.output not in OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {self.output!r}")
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype must be float32 or bfloat16, got {self.dtype!r}")
        if self.output != "intermediates" and (self.layers or self.norm):
            raise ValueError(f"`layers` and `norm` are of `output='intermediates'`, got {self.output!r}")
        if self.raw_size is not None and self.preprocessing is None:
            raise ValueError("raw_size needs preprocessing: what is done to raw pixels")
        if self.layers:
            taken_blocks(self.layers, self.model.config.depth)

    @property
    def blocks(self) -> tuple[int, ...]:
        """The indices of the blocks whose tokens are returned, in increasing order."""
        return taken_blocks(self.layers or None, self.model.config.depth)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the outputs."""
        if self.output == "intermediates":
            return tuple(f"layer_{index}" for index in self.blocks)
        return (self.output if self.output != "logits" or self.model.config.num_classes else "embeddings",)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of the input."""
        config = self.model.config
        height, width = self.raw_size or config.image_size
        return height, width, config.in_chans

    @property
    def image_dtype(self) -> DTypeLike:
        """The dtype of the input."""
        return jnp.float32 if self.raw_size is None else jnp.uint8

    def function(self) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
        """Returns the function of images (B, H, W, C) to export."""
        prepare = None
        if self.raw_size is not None:
            assert self.preprocessing is not None
            prepare = prepare_pixels(self.preprocessing, self.raw_size, self.model.config.in_chans)
        narrow = jnp.bfloat16 if self.dtype == "bfloat16" else None
        model = self.model.clone(dtype=narrow) if narrow is not None else self.model
        params = jax.tree.map(jnp.asarray, with_kernels_in(self.params, narrow))

        def run(images: jax.Array) -> tuple[jax.Array, ...]:
            return self._apply(model, params, images if prepare is None else prepare(images))

        return run

    def exact(self, images: np.ndarray) -> list[np.ndarray]:
        """Computes the model's outputs of preprocessed images in float64."""
        with jax.enable_x64(True):
            wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf, np.float64)), self.params)
            model = self.model.clone(dtype=None)
            run = jax.jit(lambda params, images: self._apply(model, params, images))
            return [np.asarray(array) for array in run(wide, jnp.asarray(images, jnp.float64))]

    def model_own(self, images: np.ndarray) -> list[np.ndarray]:
        """Computes the model's outputs of preprocessed images in the exported dtype."""
        run = jax.jit(dataclasses.replace(self, raw_size=None).function())
        return [np.asarray(array) for array in run(jnp.asarray(images, jnp.float32))]

    def _apply(self, model: VisionTransformer, params: PyTree, images: jax.Array) -> tuple[jax.Array, ...]:
        with compiled_for("cpu"):  # no platform's own kernels
            return self._outputs(model, params, images)

    def _outputs(self, model: VisionTransformer, params: PyTree, images: jax.Array) -> tuple[jax.Array, ...]:
        variables = {"params": params}
        if self.output == "logits":
            found: Any = model.apply(variables, images)
        elif self.output == "features":
            found = model.apply(variables, images, method="features")
        else:
            chosen: Sequence[int] = list(self.blocks)
            found = model.apply(
                variables, images, indices=chosen, norm=self.norm, stop_early=not self.norm, intermediates_only=True,
                method="forward_intermediates",
            )  # fmt: skip
            return tuple(found)
        return (found,)
