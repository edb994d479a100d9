"""The data of the report's figures, as JSON types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vit_flax.config import ViTConfig
from vit_flax.parity import worked_example
from vit_flax.parity.record import record_torch

if TYPE_CHECKING:
    import torch

    from vit_flax.reference import ViT_Model

TOKEN = 6  # the worked example's patch that is shown as a strip: part of the house's roof and wall


def digits_figures(module: ViT_Model, images: np.ndarray, labels: np.ndarray, config: ViTConfig) -> dict[str, Any]:
    """Returns the worked example's image and one of its tokens, the position table, and attention over some digits."""
    image = worked_example.draw_image()
    patch = worked_example.PATCH_SIZE
    columns = image.shape[1] // patch
    row, column = divmod(TOKEN, columns)
    token = image[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].reshape(-1)
    chosen = [int(np.flatnonzero(labels == digit)[0]) for digit in range(10)]
    return {
        "patches": {
            "image": _rounded(image, 3),
            "patch_size": patch,
            "token": TOKEN,
            "token_values": _rounded(token, 3),
        },
        "position_table": _rounded(module.backbone.pos_embed.detach().numpy()[0], 3),
        "attention": {
            "images": _rounded(images[chosen, 0], 3),
            "labels": [int(label) for label in labels[chosen]],
            # (digit, head, row, column): attention of the class token over the patches in the last block
            "weights": _rounded(class_attention(module, images[chosen], config), 4),
        },
    }


def class_attention(module: torch.nn.Module, images: np.ndarray, config: ViTConfig) -> np.ndarray:
    """Computes the last block's attention of the class token over the patches, (B, heads, rows, columns)."""
    weights = attention_weights(module, images, config, config.depth - 1)
    return weights[:, :, 0, 1:].reshape(len(images), config.num_heads, *config.grid_size)


def attention_weights(module: torch.nn.Module, images: np.ndarray, config: ViTConfig, block: int) -> np.ndarray:
    """Computes the attention weights (B, heads, N, N) of a block of the tutorial's ViT from its queries and keys."""
    import torch

    name = f"backbone.blocks.{block}.attn.qkv"
    with torch.no_grad():
        qkv = record_torch(module, torch.from_numpy(images), [name])[1][name]
    batch, tokens, _ = qkv.shape
    q, k, _ = qkv.reshape(batch, tokens, 3, config.num_heads, -1).transpose(2, 0, 3, 1, 4)
    logits = q @ k.swapaxes(2, 3) * (config.qk_scale or config.head_dim**-0.5)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def _rounded(array: np.ndarray, digits: int) -> list[Any]:
    return np.round(array.astype(np.float64), digits).tolist()
