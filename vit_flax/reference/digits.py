"""scikit-learn's handwritten digits, and the small ViT_Model trained on them that ships with the package."""

import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from jaxtyping import Float32, Int64
from torch import Tensor, nn

from vit_flax.reference.vit import ViT_Model

WEIGHTS_NAME = "digits_vit.safetensors"
CONFIG_NAME = "digits_vit.json"
CONSTRUCTOR_NAMES = (
    "img_size",
    "patch_size",
    "token_len",
    "preds",
    "num_heads",
    "Encoding_hidden_chan_mul",
    "depth",
    "qkv_bias",
    "qk_scale",
)


def load_digits_reference(folder: str | Path | None = None) -> ViT_Model:
    """Builds the ViT_Model that train_digits.py trained, with its weights, in eval mode.

    Args:
        folder: where train_digits wrote its two files; None means the ones shipped with the package.
    """
    folder = Path(__file__).parent if folder is None else Path(folder)
    config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    model = ViT_Model(
        **{name: config[name] for name in CONSTRUCTOR_NAMES},
        act_layer={"gelu": nn.GELU}[config["activation"]],
        norm_layer={"layernorm": nn.LayerNorm}[config["norm_layer"]],
    )
    model.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS_NAME))
    return model.eval()


def digits_images() -> tuple[Float32[Tensor, "1797 1 8 8"], Int64[Tensor, "1797"]]:
    """Returns scikit-learn's digits, scaled from 0..16 to [0, 1], and their labels 0..9.

    Raises:
        ModuleNotFoundError: if scikit-learn, whose package holds the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        message = "the digits images come with scikit-learn, which is not installed: pip install scikit-learn"
        raise ModuleNotFoundError(message, name="sklearn") from error
    # (n, 64) in 0..16 -> (n, 1, 8, 8)
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy((pixels / 16).astype(np.float32)).reshape(-1, 1, 8, 8)
    return images, torch.from_numpy(labels.astype(np.int64))


def digits_split(seed: int, num_images: int = 1797) -> tuple[Int64[Tensor, " train"], Int64[Tensor, " held_out"]]:
    """Returns the indices of the training images and of the held-out fifth, disjoint, in a random order."""
    # RandomState, because its stream is frozen: the split must be the same under every NumPy.
    order = torch.from_numpy(np.random.RandomState(seed).permutation(num_images).astype(np.int64))
    num_held_out = num_images // 5
    return order[num_held_out:], order[:num_held_out]
