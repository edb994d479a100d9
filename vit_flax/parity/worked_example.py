"""The tutorial's worked example in both frameworks: shapes and values of every stage."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from vit_flax.config import ViTConfig
from vit_flax.models import Block, PatchEmbed
from vit_flax.parity.compare import compare_arrays, require_x64
from vit_flax.parity.report import Check
from vit_flax.pretrained import from_state_dict

IMAGE_SIZE, PATCH_SIZE, TOKEN_LEN = (60, 100), 20, 768


def draw_image() -> np.ndarray:
    """Draws the example's grey 60x100 image, in [0, 1]: sky, sun, hills and a house."""
    height, width = IMAGE_SIZE
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    image = 0.9 - 0.35 * y / height  # sky
    image[np.hypot(y - 14, x - 80) < 8] = 1.0  # sun
    image[y > 38 + 7 * np.sin(x / 11) + 3 * np.sin(x / 5)] = 0.35  # hills
    image[(y > 52 + 0.5 * np.cos(x / 9))] = 0.2  # meadow
    wall = (x > 22) & (x < 44) & (y > 32) & (y < 54)
    image[wall] = 0.65
    image[(np.abs(x - 33) < (y - 20)) & (y > 20) & (y <= 32)] = 0.1  # roof
    image[(x > 30) & (x < 36) & (y > 43) & (y < 54)] = 0.05  # door
    return image


def walk() -> list[Check]:
    """Runs the example in the reference and in Flax, in float64, and returns a check for each stage.

    Raises:
        ValueError: JAX is in 32-bit mode.
    """
    require_x64()
    import torch

    from vit_flax import reference

    torch.manual_seed(0)
    lines: list[Check] = []

    def stage(text: str, expected: tuple[int, ...], ours: Any, theirs: Any) -> None:
        row = compare_arrays(text, text, theirs.detach().numpy(), np.asarray(ours))
        shape = " x ".join(map(str, row.shape))
        agrees = row.agrees and row.shape == expected
        lines.append(Check(f"{text}: {shape}, relative difference {row.relative_difference:.1e}", agrees))

    image = draw_image()[None, None]  # (B, C, H, W)
    patching = reference.Patch_Tokenization((1, *IMAGE_SIZE), PATCH_SIZE, TOKEN_LEN).double()
    unfolded = torch.nn.functional.unfold(torch.from_numpy(image), PATCH_SIZE, stride=PATCH_SIZE).transpose(1, 2)
    rows, columns = IMAGE_SIZE[0] // PATCH_SIZE, IMAGE_SIZE[1] // PATCH_SIZE
    cut = image[0, 0].reshape(rows, PATCH_SIZE, columns, PATCH_SIZE).swapaxes(1, 2).reshape(1, rows * columns, -1)
    stage("60 x 100 image, P = 20, cut into tokens", (1, 15, 400), cut, unfolded)
    weight, bias = (p.detach().numpy() for p in patching.parameters())
    kernel = weight.reshape(TOKEN_LEN, 1, PATCH_SIZE, PATCH_SIZE).transpose(2, 3, 1, 0)
    embed = PatchEmbed(IMAGE_SIZE, (PATCH_SIZE, PATCH_SIZE), TOKEN_LEN, in_chans=1)
    tokens = embed.apply(
        {"params": {"proj": {"kernel": kernel, "bias": bias}}}, jnp.asarray(image.transpose(0, 2, 3, 1))
    )
    stage("tokens projected", (1, 15, TOKEN_LEN), tokens, patching(torch.from_numpy(image)))

    # 13 x 175 tokens of the tutorial's backbone, one encoding with 4 heads and multiplier 1.5, one number out
    settings = {"num_heads": 4, "Encoding_hidden_chan_mul": 1.5, "depth": 1}
    module = reference.ViT_Model((1, 100, 700), PATCH_SIZE, TOKEN_LEN, preds=1, **settings).double()
    model, params = from_state_dict(module.state_dict(), "explained", num_heads=4, image_size=(100, 700))
    tokens = np.random.default_rng(0).standard_normal((13, 175, TOKEN_LEN))
    inner: dict[str, Any] = {}
    hooks = [
        module.backbone.blocks[0].register_forward_pre_hook(lambda _m, args: inner.update(before=args[0])),
        module.backbone.blocks[0].register_forward_hook(lambda _m, _a, out: inner.update(after=out)),
    ]
    prediction = module.backbone(torch.from_numpy(tokens))
    for hook in hooks:
        hook.remove()
    cls_token = np.broadcast_to(params["cls_token"], (13, 1, TOKEN_LEN))
    joined = np.concatenate([cls_token, tokens], axis=1) + np.asarray(params["pos_embed"])
    stage("13 x 175 x 768 tokens with the class token and positions", (13, 176, TOKEN_LEN), joined, inner["before"])
    block = Block(ViTConfig(**vars(model.config)))
    encoded = block.apply({"params": params["blocks_0"]}, jnp.asarray(joined))
    stage("one encoding, 4 heads, multiplier 1.5", (13, 176, TOKEN_LEN), encoded, inner["after"])
    ours = model.apply({"params": params}, jnp.asarray(tokens), method="backbone")
    stage("one number out for each image", (13, 1), ours, prediction)
    return lines
