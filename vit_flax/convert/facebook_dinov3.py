"""The layout of the original DINOv3 repository."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_flax.config import RopeViTConfig, ViTConfig
from vit_flax.convert.checkpoint import Checkpoint
from vit_flax.convert.eva import EVA
from vit_flax.convert.facebook import respelled
from vit_flax.convert.layout import Shapes, only, vote
from vit_flax.convert.rules import ROW, ConversionError, Drop, Rule
from vit_flax.convert.timm import named, timm_components, timm_infer, timm_rules

_NAMES = ("reg_token", "storage_tokens"), ("mlp.fc1_g", "mlp.w1"), ("mlp.fc1_x", "mlp.w2"), ("mlp.fc2", "mlp.w3")
_THIRDS = {"q_bias": 0, "k_bias": 1, "v_bias": 2}
_MASKED = re.compile(r"(blocks\.\d+\.attn\.)qkv\.bias_mask")
_TRAINING = "works in training alone"


def _split(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint with a bias for q, k and v each where a mask says that keys have none.

    Raises:
        ConversionError: on reading, a mask says something else.
    """
    masked = {found[1]: name for name in checkpoint.shapes if (found := _MASKED.fullmatch(name))}
    masked = {block: name for block, name in masked.items() if f"{block}qkv.bias" in checkpoint.shapes}
    parts = {f"{block}{part}": (block, third) for block in masked for part, third in _THIRDS.items()}
    shapes = {name: shape for name, shape in checkpoint.shapes.items() if name.removesuffix("qkv.bias") not in masked}
    for name, (block, _) in parts.items():
        width, *others = checkpoint.shapes[f"{block}qkv.bias"]
        if others or width % 3:
            raise ConversionError(f"{checkpoint.source}: {block}qkv.bias has no thirds: {(width, *others)}")
        shapes[name] = (width // 3,)

    def read(name: str) -> np.ndarray:
        if name not in parts:
            return checkpoint.read(name)
        block, third = parts[name]
        mask = np.asarray(checkpoint.read(masked[block])).astype(np.float32)
        thirds = np.split(mask, 3) if mask.ndim == 1 and mask.size % 3 == 0 else []
        if not thirds or not all(np.all(part == (i != 1)) for i, part in enumerate(thirds)):
            raise ConversionError(f"{checkpoint.source}: {masked[block]} should be ones, zeros, ones: a third each")
        return np.split(checkpoint.read(f"{block}qkv.bias"), 3)[third]

    return dataclasses.replace(checkpoint, shapes=shapes, reader=read)


def _join(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    joined = dict(tensors)
    for name in tensors:
        if name.endswith(".attn.q_bias"):
            block = name.removesuffix("q_bias")
            q, v = joined.pop(name), joined.pop(f"{block}v_bias")
            joined[f"{block}qkv.bias"] = np.concatenate([q, np.zeros_like(q), v])
            joined[f"{block}qkv.bias_mask"] = np.concatenate([np.ones_like(q), np.zeros_like(q), np.ones_like(v)])
    return joined


def _periods(config: ViTConfig) -> np.ndarray:
    count = config.head_dim // 4
    return np.power(config.rope_theta, np.arange(count) / count).astype(np.float32)


def _rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    names = _NAMES if config.mlp_layer == "swiglu" else _NAMES[:1]
    return (
        *respelled(timm_rules(config), *names),
        *(Rule(f"blocks.{{i}}.attn.{c}_bias", f"blocks_{{i}}/attn/{c}_bias") for c in "qv"),
        Rule("mask_token", "mask_token", ROW),
        Drop("blocks.{i}.attn.k_bias", "its mask is zero"),
        Drop("blocks.{i}.attn.qkv.bias_mask", "keys have no bias here"),
        Drop(
            "rope_embed.periods",
            "computed from rope_theta in float32, as timm and transformers do; published files have it in bfloat16, "
            "so the original's angles differ by up to 0.4 %",
            _periods(config),
        ),
        Drop("local_cls_norm.{part}", _TRAINING),
        Drop("projectors.{rest}", _TRAINING),  # EUPE's
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    respelt = shapes
    for timm, original in _NAMES:
        respelt = {name.replace(original, timm): shape for name, shape in respelt.items()}
    values = timm_infer(respelt, known)
    periods = vote(shapes, ("rope_embed.periods", 0))
    if periods and values["embed_dim"] % (4 * periods) == 0:
        values["num_heads"] = values["embed_dim"] // (4 * periods)
    key_bias = values["qkv_bias"]
    return {
        **values,
        "block": "standard",
        "key_bias": key_bias,
        "qkv_bias": key_bias or "blocks.0.attn.q_bias" in shapes,
        "mask_token": "mask_token" in shapes,
        "global_pool": "token",
    }


def _defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"norm_eps": 1e-5, "activation": "silu" if values.get("mlp_layer") == "swiglu" else "gelu"}


FACEBOOK_DINOV3 = dataclasses.replace(
    EVA,
    name="dinov3",
    description="DINOv3",
    evidence=named("storage_tokens", "blocks.0.attn.qkv"),
    infer=_infer,
    rules=_rules,
    required=(("num_heads", "image_size"),),
    defaults=_defaults,
    fixed=only(
        RopeViTConfig,
        (
            "image_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias",
            "key_bias", "init_values", "norm_eps", "reg_tokens", "num_classes",
        ),
        qk_scale=(None, 0), mask_token=(True,), mlp_layer=("mlp", "swiglu"),
        activation=("gelu", "silu"), global_pool=("token", "avg"),
    ),
    components=lambda config: tuple(pair for pair in timm_components(config) if "attn.qkv" not in pair[0]),
    hint="",
    belongs=None,
    split=_split,
    join=_join,
)  # fmt: skip
