"""Layouts of OpenMMLab's ViTs: mmpretrain's (before: mmcls's) VisionTransformer, DeiT, DeiT-III, BEiT; mmseg's ViT.

Reference: mmpretrain.models.backbones.{vision_transformer, deit, deit3, beit}, mmpretrain.models.heads and
mmseg.models.backbones.vit, by their published names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import BeitConfig, PlainViTConfig, ViTConfig
from vit_flax.convert.beit import BEIT, TABLE, beit_infer, relative_rules
from vit_flax.convert.facebook import infer_as
from vit_flax.convert.layout import Layout, Shapes, only, vote
from vit_flax.convert.rules import CONV, Drop, Rule
from vit_flax.convert.timm import named, timm_infer
from vit_flax.convert.timm_blocks import linear, norm

_BLOCK = "layers.{i}"


def _shared(config: ViTConfig) -> tuple[Rule, ...]:
    """Returns the rules of what all of them have."""
    fc1, fc2 = ("w12", "w3") if config.mlp_layer == "swiglu_packed" else ("layers.0.0", "layers.1")
    return (
        Rule("cls_token", "cls_token"),
        Rule("pos_embed", "pos_embed"),
        Rule("patch_embed.projection.weight", "patch_embed/proj/kernel", CONV),
        Rule("patch_embed.projection.bias", "patch_embed/proj/bias"),
        *norm(f"{_BLOCK}.ln{{n}}", "blocks_{i}/norm{n}"),
        *linear(f"{_BLOCK}.attn.qkv", "blocks_{i}/attn/qkv"),
        *linear(f"{_BLOCK}.attn.proj", "blocks_{i}/attn/proj"),
        *linear(f"{_BLOCK}.ffn.{fc1}", "blocks_{i}/mlp/fc1"),
        *linear(f"{_BLOCK}.ffn.{fc2}", "blocks_{i}/mlp/fc2"),
        *norm("ln1", "norm"),
        *norm("ln2", "fc_norm"),
        *linear("head.layers.head", "head"),
    )


def _rules(config: ViTConfig) -> tuple[Rule, ...]:
    return (
        *_shared(config),
        Rule("dist_token", "dist_token"),
        *norm("patch_embed.norm", "patch_embed/norm"),
        *norm("pre_norm", "norm_pre"),
        Rule(f"{_BLOCK}.attn.gamma1.weight", "blocks_{i}/ls1/gamma"),
        Rule(f"{_BLOCK}.ffn.gamma2.weight", "blocks_{i}/ls2/gamma"),
        *linear("head.layers.pre_logits", "pre_logits"),
        *linear("head.layers.head_dist", "head_dist"),
    )


def _beit_rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    return (*_shared(config), Rule(f"{_BLOCK}.gamma_{{n}}", "blocks_{i}/ls{n}/gamma"), *relative_rules(_BLOCK))


# What is called otherwise than by timm, as patterns.
_TIMM = (
    (r"^patch_embed\.projection\.", "patch_embed.proj."),
    (r"^pre_norm\.", "norm_pre."),
    (r"^layers\.(\d+)\.", r"blocks.\1."),
    (r"^(blocks\.\d+)\.ln(\d)\.", r"\1.norm\2."),
    (r"\.(attn|ffn)\.gamma(\d)\.weight$", r".ls\2.gamma"),
    (r"\.ffn\.(layers\.0\.0|w12)\.", ".mlp.fc1."),
    (r"\.ffn\.(layers\.1|w3)\.", ".mlp.fc2."),
    (r"^ln1\.", "norm."),
    (r"^ln2\.", "fc_norm."),
    (r"^head\.layers\.", ""),
)


def _infer(shapes: Shapes, known: Mapping[str, object]) -> dict[str, Any]:
    values = infer_as(timm_infer, *_TIMM)(shapes, known)
    if values["fc_norm"] or values["class_token"]:  # out_type='avg_featmap', or the class token
        values["global_pool"] = "avg" if values["fc_norm"] else "token"
    return {**values, "representation_size": vote(shapes, ("head.layers.pre_logits.weight", 0))}


_PREFIX = "backbone."


def _evidence(names: Collection[str], *more: str) -> str | None:
    inside = [name.removeprefix(_PREFIX) for name in names]
    return named("patch_embed.projection", "layers.0.ln1", "layers.0.ffn", *more)(inside)


def _beit_evidence(names: Collection[str]) -> str | None:
    return _evidence(names, f"layers.0.attn.{TABLE}") or _evidence(names, f"rel_pos_bias.{TABLE}")


_FREE = (
    "image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias",
    "init_values", "norm_eps", "activation", "fc_norm", "final_norm",
)  # fmt: skip

MMPRETRAIN = Layout(
    name="mmpretrain",
    description="OpenMMLab's VisionTransformer, DeiT and DeiT-III (mmpretrain, mmcls, mmseg)",
    config_class=PlainViTConfig,
    evidence=_evidence,
    infer=_infer,
    rules=_rules,
    # CLIP's towers and mmseg's ViT have the same names and other numerics
    required=(("num_heads", "image_size", "norm_eps", "activation", "global_pool"), ("no_embed_class",)),
    defaults=lambda values: {},
    fixed=only(
        PlainViTConfig,
        (
            *_FREE, "class_token", "dist_token", "head_dist", "patch_bias", "patch_norm", "pre_norm", "no_embed_class",
            "representation_size",
        ),
        qk_scale=(None, 0), pos_embed=("learned",), global_pool=("token", "avg", "none"),
        mlp_layer=("mlp", "swiglu_packed"),
    ),
    resample=lambda config: "bicubic",
    # mmseg has the attention of torch, whose joined layer is the same
    aliases=(
        (f"{_BLOCK}.attn.attn.in_proj_{{part}}", f"{_BLOCK}.attn.qkv.{{part}}"),
        (f"{_BLOCK}.attn.attn.out_proj.{{part}}", f"{_BLOCK}.attn.proj.{{part}}"),
    ),
    prefixes=(_PREFIX,),
    prefix=lambda config: _PREFIX,
    outside=("head.",),
    heads=(("head", "head.layers.head"),),
    hint="; its own default is norm_eps=1e-06 with 'gelu', CLIP's models have 1e-05",
)  # fmt: skip

MMPRETRAIN_BEIT = Layout(
    name="mmpretrain_beit",
    description="OpenMMLab's BEiT (mmpretrain, mmcls, mmseg)",
    config_class=BeitConfig,
    evidence=_beit_evidence,
    infer=infer_as(beit_infer, *_TIMM),
    rules=_beit_rules,
    required=BEIT.required,
    defaults=BEIT.defaults,
    fixed=BEIT.fixed,
    resample=MMPRETRAIN.resample,
    resample_rel_pos_bias=BEIT.resample_rel_pos_bias,
    prefixes=MMPRETRAIN.prefixes,
    prefix=MMPRETRAIN.prefix,
    outside=MMPRETRAIN.outside,
    heads=MMPRETRAIN.heads,
)
