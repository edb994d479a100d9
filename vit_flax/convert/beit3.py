"""The image part of Microsoft's own BEiT-3, whose experts of text stand beside it.

Reference: timm.models.vision_transformer._convert_beit3; BEiT3 of microsoft/unilm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from vit_flax.config import PlainViTConfig, ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.layout import Layout, Shapes, any_match, only, vote
from vit_flax.convert.rules import CONV, Drop, Operation, Rule
from vit_flax.convert.timm import named
from vit_flax.convert.timm_blocks import joined, linear, norm

_IMAGE, _TEXT = "A", "the expert of text's"  # the experts
_BLOCK = "beit3.encoder.layers.{i}"
_KERNEL = "beit3.vision_embed.proj.weight"
_TABLE = f"beit3.encoder.embed_positions.{_IMAGE}.weight"
_UNUSED = 2  # rows before those of tokens
_ROWS = Operation(
    f"rows after the first {_UNUSED}, which no token has",
    lambda a: a[None, _UNUSED:],
    lambda a: (np.concatenate([np.zeros((_UNUSED, a.shape[-1]), a.dtype), a[0]]),),
)


def _rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    attention, target = f"{_BLOCK}.self_attn", "blocks_{i}"
    return (
        Rule("beit3.vision_embed.cls_token", "cls_token"),
        Rule(_KERNEL, "patch_embed/proj/kernel", CONV),
        Rule("beit3.vision_embed.proj.bias", "patch_embed/proj/bias"),
        Rule(_TABLE, "pos_embed", _ROWS),
        *norm(f"{_BLOCK}.self_attn_layer_norm.{_IMAGE}", f"{target}/norm1"),
        *joined(tuple(f"{attention}.{part}_proj.{_IMAGE}" for part in "qkv"), f"{target}/attn/qkv", (1, 1, 1)),
        *norm(f"{attention}.inner_attn_ln.{_IMAGE}", f"{target}/attn/norm"),
        *linear(f"{attention}.out_proj.{_IMAGE}", f"{target}/attn/proj"),
        *norm(f"{_BLOCK}.final_layer_norm.{_IMAGE}", f"{target}/norm2"),
        *linear(f"{_BLOCK}.ffn.{_IMAGE}.fc{{n}}", f"{target}/mlp/fc{{n}}"),
        *norm(f"{_BLOCK}.ffn.{_IMAGE}.ffn_layernorm", f"{target}/mlp/norm"),
        *norm("fc_norm", "fc_norm"),
        *linear("head", "head"),
        Drop("beit3.vision_embed.mask_token", "stands for masked patches in training"),
        Drop("beit3.text_embed.weight", "the words'"),
        Drop("beit3.encoder.embed_positions.B.weight", _TEXT),
        Drop(f"{_BLOCK}.{{part}}.B.{{rest}}", _TEXT),
        Drop(f"{_BLOCK}.self_attn.{{part}}.B.{{rest}}", _TEXT),
        Drop("mim_head.{rest}", "predicts masked patches in pre-training"),
        Drop("mlm_head.{rest}", "predicts masked words in pre-training"),
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    names = hf.Names(
        _BLOCK, f"self_attn_layer_norm.{_IMAGE}", f"final_layer_norm.{_IMAGE}", f"self_attn.q_proj.{_IMAGE}", "", "",
        "", f"ffn.{_IMAGE}.fc1", f"ffn.{_IMAGE}.fc2",
    )  # fmt: skip
    pooled = any_match(shapes, "fc_norm.weight")
    return {
        **hf.block_infer(shapes, names),
        **hf.patch_infer(shapes, _KERNEL),
        "scale_attn_norm": any_match(shapes, f"{_BLOCK}.self_attn.inner_attn_ln.{_IMAGE}.weight"),
        "scale_mlp_norm": any_match(shapes, f"{_BLOCK}.ffn.{_IMAGE}.ffn_layernorm.weight"),
        "fc_norm": pooled,
        "final_norm": pooled,  # in pre-training there is none
        "global_pool": "avg",
        "num_classes": vote(shapes, ("head.weight", 0), ("head.bias", 0)) or 0,
    }


BEIT3 = Layout(
    name="beit3",
    description="Microsoft's own BEiT-3, the image part",
    config_class=PlainViTConfig,
    evidence=named(_KERNEL, f"{_BLOCK.format(i=0)}.self_attn.q_proj.{_IMAGE}"),
    infer=_infer,
    rules=_rules,
    required=(("num_heads", "image_size"),),
    defaults=lambda known: {"norm_eps": 1e-5, "activation": "gelu", "qk_scale": None},
    fixed=only(
        PlainViTConfig,
        (
            "image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio",
            "norm_eps", "fc_norm", "final_norm",
        ),
        qk_scale=(None, 0), scale_attn_norm=(True, False), scale_mlp_norm=(True, False), global_pool=("avg",),
    ),
    conditions=lambda config: (
        [f"final_norm={config.final_norm} with fc_norm={config.fc_norm} (it normalises what it pooled, or nothing)"]
        if config.final_norm != config.fc_norm
        else []
    ),
    resample=lambda config: "bicubic_antialias",
)  # fmt: skip
