"""Position embeddings: learned and fixed tables."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vit_flax.models.placed import custom_vjp


def sinusoid_1d(num_tokens: int, token_len: int) -> np.ndarray:
    """Computes the fixed sinusoid table, shape (1, num_tokens, token_len), float32.

    Column j of row i is the sine (j even) or cosine (j odd) of i / 10000^(2 (j // 2) / token_len), in float64 until
    the end.

    Reference: get_sinusoid_encoding of the tutorial and of T2T-ViT; arXiv 1706.03762, section 3.5.
    """
    columns = np.arange(token_len)
    angles = np.arange(num_tokens)[:, None] / np.power(10000, 2 * (columns // 2) / token_len)
    return np.where(columns % 2 == 0, np.sin(angles), np.cos(angles))[None].astype(np.float32)


def sincos_2d(
    grid_size: tuple[int, int], token_len: int, prefix_tokens: int = 0, dtype: DTypeLike = np.float32
) -> np.ndarray:
    """Computes the fixed table of MAE, I-JEPA and AIMv2's native models, shape (1, prefix_tokens + H W, token_len).

    The first half of a row encodes the column, the second the row of the grid; each half is sines, then cosines, of the
    coordinate / 10000^(4 j / token_len). Prefix tokens have zeros.

    Raises:
        ValueError: `token_len` is not divisible by 4.

    Reference: get_2d_sincos_pos_embed of MAE, arXiv 2111.06377.
    """
    if token_len % 4:
        raise ValueError(f"a 2-D sine-cosine table needs a width divisible by 4, got {token_len}")
    height, width = grid_size
    frequencies = 10000 ** (-np.arange(token_len // 4) / (token_len / 4))
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]
    table = np.concatenate([part(angle) for angle in angles for part in (np.sin, np.cos)], axis=1)
    return np.concatenate([np.zeros((prefix_tokens, token_len)), table])[None].astype(dtype)


def simple_sincos_2d(
    grid_size: tuple[int, int], token_len: int, prefix_tokens: int = 0, temperature: float = 10000.0
) -> np.ndarray:
    """Computes the fixed table of SimpleViT and big_vision, shape (1, prefix_tokens + H W, token_len), float32.

    As `sincos_2d`, but frequency j of n is temperature^(-j / (n - 1)), so that the last one is 1 / temperature.

    Raises:
        ValueError: `token_len` is not divisible by 4.

    Reference: posemb_sincos_2d of vit_pytorch.simple_vit and of big_vision; arXiv 2205.01580.
    """
    if token_len % 4:
        raise ValueError(f"a 2-D sine-cosine table needs a width divisible by 4, got {token_len}")
    rows, columns = (axis.reshape(-1, 1) for axis in np.mgrid[: grid_size[0], : grid_size[1]])
    frequencies = temperature ** -(np.arange(token_len // 4) / max(token_len // 4 - 1, 1))
    parts = [wave(axis * frequencies) for axis in (columns, rows) for wave in (np.sin, np.cos)]
    table = np.concatenate(parts, axis=1)
    return np.concatenate([np.zeros((prefix_tokens, token_len)), table])[None].astype(np.float32)


@custom_vjp
def add_to_each(tokens: Float[Array, "b n d"], table: Float[Array, "1 n d"]) -> Float[Array, "b n d"]:
    """Adds a table to every image of a batch, and sums its gradient from tokens that lie as they are written.

    XLA's compiler for GPUs would sum over the fastest axis, and for that lay out all tokens of the model images last.
    """
    return tokens + table


def _add_forward(tokens: Array, table: Array) -> tuple[Array, tuple[Array, Array]]:
    return tokens + table, (jnp.zeros(0, tokens.dtype), jnp.zeros(0, table.dtype))


def _add_backward(likes: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    lying: Any = with_layout_constraint(g, Layout(tuple(range(g.ndim))))
    return g.astype(likes[0].dtype), lying.sum(0, keepdims=True).astype(likes[1].dtype)


add_to_each.defvjp(_add_forward, _add_backward)
