"""Random inputs of a comparison, the same for both frameworks: images, padded patches, texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from vit_flax.config import TextConfig, ViTConfig
from vit_flax.preprocessing.naflex import to_patches

if TYPE_CHECKING:
    import torch

TEXTS = 3


@dataclasses.dataclass(frozen=True)
class DrawnImages:
    """Images (B, C, H, W); for NaFlex models padded patches with their mask and grids."""

    pixels: np.ndarray  # (B, C, H, W), or patches (B, N, p p C)
    mask: np.ndarray | None = None  # (B, N), False for padding
    grids: np.ndarray | None = None  # (B, 2), rows and columns of patches

    @property
    def to_flax(self) -> Callable[[np.ndarray], np.ndarray]:
        """The function from NCHW to NHWC; the identity for patches."""
        return (lambda pixels: pixels.transpose(0, 2, 3, 1)) if self.mask is None else (lambda pixels: pixels)

    @property
    def flax_arguments(self) -> dict[str, np.ndarray]:
        """Keyword arguments of the Flax model beside the pixels."""
        if self.mask is None or self.grids is None:
            return {}
        return {"mask": self.mask, "spatial_shapes": self.grids}

    def torch_arguments(self) -> dict[str, torch.Tensor]:
        """Returns the keyword arguments of transformers' model beside the pixels."""
        import torch

        if self.mask is None or self.grids is None:
            return {}
        mask, grids = torch.from_numpy(self.mask.astype(np.int32)), torch.from_numpy(self.grids.astype(np.int64))
        return {"pixel_attention_mask": mask, "spatial_shapes": grids}


def draw_images(config: ViTConfig, seed: int = 0) -> DrawnImages:
    """Draws two random images; for a NaFlex model a wide one and a tall one, both padded."""
    drawn = np.random.default_rng(seed)
    if not config.tokens.pads:
        return DrawnImages(drawn.standard_normal((2, config.in_chans, *config.image_size)))
    side, (rows, columns) = config.patch_size[0], config.grid_size
    # not one column: torch's antialiased resizing to a width of 1 repeats the first row
    grids = ((max(1, rows - 1), columns + 1), (rows + 1, max(2, columns - 1)))
    images = [drawn.standard_normal((side * h, side * w, config.in_chans)) for h, w in grids]
    return DrawnImages(*to_patches(images, side, 1 + max(h * w for h, w in grids)))


@dataclasses.dataclass(frozen=True)
class DrawnTexts:
    """Token ids (T, N) of texts of several lengths, and their attention mask, None where the tokeniser returns none."""

    tokens: np.ndarray
    mask: np.ndarray | None


def draw_texts(config: TextConfig, hides_padding: bool, seed: int = 0) -> DrawnTexts:
    """Draws random token ids that end with the end-of-text token where `pool` looks for one.

    `pool="eos"` also gets a higher id before the end, at which `pool="argmax"` would pool instead.
    """
    length, vocab = config.context_length, config.vocab_size
    end = {"eos": config.eos_token_id, "argmax": vocab - 1}.get(config.pool)
    pad = 1 if end == 0 and vocab > 1 else 0
    tokens = np.random.default_rng(seed).integers(0, vocab, (TEXTS, length))
    tokens[tokens == end] = pad
    mask = np.zeros(tokens.shape, bool)
    for row, part in enumerate((1, 0.4, 0.7)):
        count = max(1, round(part * length))
        if config.pool == "eos" and count > 1 and end != vocab - 1:
            tokens[row, 0] = vocab - 1
        if end is not None:
            tokens[row, count - 1] = end
        tokens[row, count:] = pad
        mask[row, :count] = True
    return DrawnTexts(tokens, mask if hides_padding else None)
