"""Rotary position embedding: positions are rotations of the patches' queries and keys."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit_flax.config import ViTConfig
from vit_flax.models.placed import reshape
from vit_flax.models.position import Positions
from vit_flax.models.precision import accumulator_dtype


def rotary_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """Computes theta^(-j / n) for the n = head_dim / 4 channels of an axis, each step rounded to float32.

    The power is rounded from float64, so correctly. So is torch's for heads of width 64 and 128 at every theta in use;
    for other widths torch's last bit differs between processors, and between its `arange` and a quotient.

    Reference: `inv_freq` of transformers' DINOv3ViTRopePositionEmbedding, timm.layers.pos_embed_sincos.freq_bands.
    """
    count = head_dim // 4
    exponents = np.arange(count, dtype=np.float32) / np.float32(count)
    return np.float32(1) / np.power(float(theta), exponents.astype(np.float64)).astype(np.float32)


def rotary_axes(cfg: ViTConfig) -> tuple[np.ndarray, np.ndarray]:
    """Returns the two coordinates of every patch that frequencies multiply, rounded to float32.

    'dinov3': 2 pi times the patch centre's place in -1..1; else the patch's number in its row or column, counted from
    `rope_grid_offset` and stretched so that the grid has the size of `rope_ref_grid`.
    """
    sides = cfg.grid_size
    if cfg.rope_type == "dinov3":
        places = [2 * (np.arange(0.5, side, dtype=np.float32) / np.float32(side)) - 1 for side in sides]
        axes = [np.float32(2 * np.pi) * place for place in places]
    else:
        axes = [np.arange(side, dtype=np.float32) + np.float32(cfg.rope_grid_offset) for side in sides]
        if cfg.rope_ref_grid is not None:
            stretched = zip(axes, sides, cfg.rope_ref_grid, strict=True)
            axes = [axis / np.float32(side) * np.float32(ref) for axis, side, ref in stretched]
    rows, columns = (axis.reshape(-1).astype(np.float64) for axis in np.meshgrid(*axes, indexing="ij"))
    return (columns, rows) if cfg.rope_grid_indexing == "xy" else (rows, columns)


def rotary_angles(cfg: ViTConfig) -> np.ndarray:
    """Computes the angle of every patch and pair of channels, shape (H W, head_dim / 2), in float64.

    A quarter of the head's channels follows the row and one the column, or the other way round for 'xy'.

    Reference: transformers' DINOv3ViTRopePositionEmbedding; timm's RotaryEmbeddingDinoV3 and RotaryEmbeddingCat.
    """
    frequencies = rotary_frequencies(cfg.head_dim, cfg.rope_theta).astype(np.float64)
    return np.concatenate([axis[:, None] * frequencies for axis in rotary_axes(cfg)], axis=1)


def mixed_angles(cfg: ViTConfig, freqs: Float[Array | np.ndarray, "2 l h f"]) -> Float[Array, "l h p f"]:
    """Computes the angles of learned frequencies, of every block and head.

    Reference: timm's RotaryEmbeddingMixed; arXiv 2403.13298.
    """
    dtype = jnp.promote_types(freqs.dtype, jnp.float32)
    first, second = (jnp.asarray(axis, dtype)[:, None] for axis in rotary_axes(cfg))
    freqs = freqs.astype(dtype)[:, :, :, None]
    return first * freqs[0] + second * freqs[1]


def rotate(x: Float[Array, "b h p e"], angles: Array | np.ndarray, half: bool) -> Float[Array, "b h p e"]:
    """Rotates pairs of channels by their angles: j with j + e/2 if `half`, else 2 j with 2 j + 1."""
    numpy = np if isinstance(angles, np.ndarray) else jnp
    angles = numpy.concatenate([angles, angles], axis=-1) if half else numpy.repeat(angles, 2, axis=-1)
    cos, sin = (jnp.asarray(table, x.dtype) for table in (numpy.cos(angles), numpy.sin(angles)))
    if half:
        first, second = jnp.split(x, 2, axis=-1)
        turned = jnp.concatenate([-second, first], axis=-1)
    else:
        turned = reshape(jnp.stack([-x[..., 1::2], x[..., ::2]], axis=-1), *x.shape)
    return x * cos + turned * sin


def _turned(x: Float[Array, "b h n e"], prefix: int, angles: Array | np.ndarray, half: bool) -> Float[Array, "b h n e"]:
    # in float32 or wider: sine and cosine of far patches have no digits to lose
    wide = x.astype(accumulator_dtype(x.dtype))
    return jnp.concatenate([wide[:, :, :prefix], rotate(wide[:, :, prefix:], angles, half)], axis=2)


class RotaryPositions(Positions):
    """Rotates the queries and keys of patches, not those of prefix tokens unless these have angles of their own.

    Reference: transformers' DINOv3ViTAttention, arXiv 2508.10104; timm's EvaAttention and AttentionRope; for the class
    token transformers' MLCDVisionModel, arXiv 2407.17331.
    """

    def setup_model(self, model: nn.Module) -> None:
        """Adds the learned frequencies of every block and head, if they are learned."""
        cfg = model.config
        if cfg.rope_type == "mixed":
            shape = (2, cfg.depth, cfg.num_heads, cfg.head_dim // 2)
            init = partial(_init_freqs, config=cfg, dtype=model.policy.params)
            model.rope_freqs = model.param("rope_freqs", init, shape)
        if cfg.rope_class_token:
            shape, dtype = (1, cfg.head_dim // 2), model.policy.params
            model.rope_class_angles = model.param("rope_class_angles", nn.initializers.normal(1.0), shape, dtype)

    def block_inputs(self, model: nn.Module, mask: Array | None) -> list[Array | np.ndarray | None]:
        """Returns the angles of every block."""
        cfg = model.config
        if cfg.rope_type == "mixed":
            return list(mixed_angles(cfg, model.rope_freqs))
        if cfg.rope_type == "none":
            return [None] * cfg.depth
        angles: Array | np.ndarray = rotary_angles(cfg)
        if cfg.rope_class_token:
            first = model.rope_class_angles
            wide = jnp.asarray(angles, jnp.promote_types(first.dtype, jnp.float32))
            angles = jnp.concatenate([first.astype(wide.dtype), wide])
        return [angles] * cfg.depth

    def apply(
        self, attention: nn.Module, q: Array, k: Array, scale: float, given: Array | np.ndarray | None
    ) -> tuple[Array, Array, Array | None]:
        """Returns queries and keys rotated by the angles ([H,] P, E/2) given, if any."""
        if given is None:
            return q, k, None
        half = self.config.rope_rotate_half
        prefix = 0 if self.config.rope_class_token else self.config.num_prefix_tokens
        return _turned(q, prefix, given, half), _turned(k, prefix, given, half), None


def _init_freqs(key: Array, shape: tuple[int, ...], config: ViTConfig, dtype: DTypeLike) -> Array:
    # every head of every block begins with axes turned by an angle of its own
    magnitude = rotary_frequencies(config.head_dim, config.rope_theta)
    turn = nn.initializers.uniform(2 * np.pi)(key, (*shape[1:3], 1), dtype)
    both = jnp.concatenate([turn, turn + np.pi / 2], axis=-1)[..., None]
    freqs = jnp.stack([jnp.cos(both), jnp.sin(both)]) * jnp.asarray(magnitude, dtype)
    return freqs.reshape(shape)
