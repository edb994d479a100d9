"""The layout of timm's VisionTransformer and VisionTransformerDistilled."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vit_flax.config import PlainViTConfig, ViTConfig
from vit_flax.convert.layout import Layout, Shapes, any_match, count_blocks, ratio_for, vote
from vit_flax.convert.rules import CONV, ConversionError, Rule
from vit_flax.convert.timm_blocks import block_components, block_rules, joined, linear, norm, standard_names


def timm_rules(config: ViTConfig) -> tuple[Rule, ...]:
    """Returns timm's table."""
    return (
        Rule("cls_token", "cls_token"),
        Rule("dist_token", "dist_token"),
        Rule("reg_token", "reg_token"),
        Rule("pos_embed", "pos_embed"),
        Rule("patch_embed.proj.weight", "patch_embed/proj/kernel", CONV),
        Rule("patch_embed.proj.bias", "patch_embed/proj/bias"),
        *norm("patch_embed.norm", "patch_embed/norm"),
        *norm("norm_pre", "norm_pre"),
        *block_rules(config),
        *norm("norm", "norm"),
        Rule("attn_pool.latent", "attn_pool/latent"),
        *joined(("attn_pool.q", "attn_pool.kv"), "attn_pool/qkv", (1, 2)),
        *linear("attn_pool.proj", "attn_pool/proj"),
        *norm("attn_pool.norm", "attn_pool/norm"),
        *linear("attn_pool.mlp.fc{n}", "attn_pool/mlp/fc{n}"),
        *norm("fc_norm", "fc_norm"),
        *linear("head", "head"),
        *linear("head_dist", "head_dist"),
    )


def timm_infer(shapes: Shapes, known: Mapping[str, object]) -> dict[str, Any]:
    """Returns what tensors under timm's names tell, given what is known already."""
    kind, shapes = standard_names(shapes)
    block = "blocks.{i}"
    depth = count_blocks(shapes, f"{block}.norm1.{{a}}")
    dim = vote(shapes, ("cls_token", -1), ("pos_embed", -1), (f"{block}.norm{{n}}.weight", 0), ("norm.weight", 0))
    if depth is None or dim is None:
        raise ConversionError("no tensors named blocks.0...: there is no block to read")

    def has(*templates: str) -> bool:
        return any_match(shapes, *templates)

    values: dict[str, Any] = {
        "block": kind,
        "depth": depth,
        "embed_dim": dim,
        "patch_bias": has("patch_embed.proj.bias"),
        "patch_norm": has("patch_embed.norm.weight"),
        "class_token": has("cls_token"),
        "dist_token": has("dist_token"),
        "reg_tokens": vote(shapes, ("reg_token", 1)) or 0,
        "pos_embed": "learned" if has("pos_embed") else "none",
        "pre_norm": has("norm_pre.weight"),
        "norm_layer": "layernorm" if has(f"{block}.norm{{n}}.bias", "norm.bias", "fc_norm.bias") else "rmsnorm",
        "qkv_bias": has(f"{block}.attn.qkv.bias"),
        "qk_norm": has(f"{block}.attn.q_norm.weight"),
        "proj_bias": has(f"{block}.attn.proj.bias", f"{block}.attn_out_proj.bias", f"{block}.out_proj.bias"),
        "scale_attn_norm": has(f"{block}.attn.norm.weight"),
        "init_values": 1e-5 if has(f"{block}.ls{{n}}.gamma") else None,  # only sets what a new model starts with
        "mlp_bias": has(f"{block}.mlp.fc2.bias", f"{block}.mlp_out_proj.bias", f"{block}.out_proj.bias"),
        "scale_mlp_norm": has(f"{block}.mlp.norm.weight"),
        "final_norm": has("norm.weight", "fc_norm.weight"),
        "fc_norm": has("fc_norm.weight"),
        "num_classes": vote(shapes, ("head.weight", 0), ("head.bias", 0)) or 0,
        "head_dist": has("dist_token"),
    }
    if has("attn_pool.latent"):
        values["global_pool"] = "map"
    if not has("attn_pool.latent") or not (values["class_token"] or values["reg_tokens"]):
        values["pool_include_prefix"] = False  # as timm has it, but for some that pool by attention
    if kind == "standard" and not values["qkv_bias"] and values["init_values"] is None:
        del values["block"]  # as likely the post-norm block of timm's 'rpn' models, which has the same tensors
    hidden = vote(shapes, (f"{block}.mlp.fc2.weight", 1), (f"{block}.mlp_bias", 0))
    if hidden is None and (joint := vote(shapes, (f"{block}.in_proj.weight", 0))):
        hidden = joint - 3 * dim  # one layer for hidden layer, q, k and v
    if hidden is not None:
        values["mlp_ratio"] = ratio_for(hidden, dim)
        packed = vote(shapes, (f"{block}.mlp.fc1.weight", 0)) == 2 * hidden
        values["mlp_layer"] = "swiglu" if has(f"{block}.mlp.fc1_g.weight") else "swiglu_packed" if packed else "mlp"
    kernel = shapes.get("patch_embed.proj.weight", ())
    if len(kernel) == 4:
        values["in_chans"], values["patch_size"] = kernel[1], tuple(kernel[2:])
    values.update(_infer_rows(shapes, {**values, **known}))
    return values


def _infer_rows(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    # whether the position table has rows for prefix tokens follows from the grid
    rows, size, patch = vote(shapes, ("pos_embed", 1)), known.get("image_size"), known.get("patch_size")
    prefix = known["class_token"] + known["dist_token"] + known["reg_tokens"]
    if "no_embed_class" in known or rows is None or not prefix:
        return {"no_embed_class": known.get("no_embed_class", False)}
    if grid := known.get("source_grid"):
        return {"no_embed_class": rows == math.prod(grid)}
    if size is None or patch is None:
        return {}
    (height, width), (ph, pw) = ((v, v) if isinstance(v, int) else v for v in (size, patch))
    # the image size may be one that the caller wants, and the table one for another: then it is for squares
    asked = (height // ph) * (width // pw)
    if height // ph == width // pw and asked in (rows, rows - prefix):
        return {"no_embed_class": asked == rows}
    alone, joined = (count == asked or math.isqrt(max(count, 0)) ** 2 == count for count in (rows, rows - prefix))
    return {} if alone and joined else {"no_embed_class": alone}


def timm_components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    """Returns the pairs of modules."""
    outside = ["norm_pre"] * config.pre_norm
    outside += ["norm"] * (config.final_norm and not config.fc_norm) + ["fc_norm"] * config.fc_norm
    if config.global_pool == "map":
        outside += ["attn_pool.norm", "attn_pool.mlp", "attn_pool"]
    outside += ["head:input", "head"] * (config.num_classes > 0)
    outside += ["head_dist"] * (config.num_classes > 0 and config.head_dist)
    return (
        ("patch_embed", "patch_embed"),
        ("blocks.0:input", "blocks_0:input"),  # prefix tokens and positions are in place
        *block_components(config),
        *((part, part.replace(".", "/")) for part in outside),
    )


def named(*needles: str) -> Callable[[Collection[str]], str | None]:
    """Returns the evidence of a layout: for every needle, a name that has it as a whole or as its beginning."""

    def evidence(names: Collection[str]) -> str | None:
        hits = [next((name for name in names if name == n or name.startswith(f"{n}.")), None) for n in needles]
        return " and ".join(str(hit) for hit in hits) if all(hits) else None

    return evidence


def _evidence(names: Collection[str]) -> str | None:
    kinds = ("attn.qkv", "attns.0.attn.qkv", "in_proj")
    return next((found for kind in kinds if (found := named("patch_embed.proj", f"blocks.0.{kind}")(names))), None)


def _conditions(config: ViTConfig) -> list[str]:
    lines = []
    if config.patch_bias == config.pre_norm:
        lines.append(f"patch_bias={config.patch_bias} with pre_norm={config.pre_norm} (timm has one or the other)")
    if config.mlp_bias != config.proj_bias:
        lines.append(f"mlp_bias={config.mlp_bias} with proj_bias={config.proj_bias} (timm has both or none)")
    if config.head_dist != config.dist_token:
        lines.append(f"head_dist={config.head_dist} with dist_token={config.dist_token} (timm has both or none)")
    return lines


PLAIN = {
    "value_skip": (False,),
    "qk_scale": (None, 0),
    "no_embed_reg": (False,),
    "mask_token": (False,),
    "representation_size": (None,),
    "pos_embed": ("learned", "sinusoid", "sincos_2d", "none"),  # a table that is not stored would be lost
    "head_bias": (True,),
    "global_pool": ("token", "avg", "avgmax", "max", "map", "none"),
}


def _unsettled(names: Collection[str]) -> str | None:
    if not any(name.endswith("pos_embed") for name in names):
        return (
            "no table of positions, and timm's models that turn queries and keys instead have the same names; pass "
            "`config=` with the preset's name, or `layout='timm'` where there are no positions at all"
        )
    if not any(name.endswith("norm_pre.weight") for name in names):
        return None
    return (
        "timm's CLIP towers and its Perception Encoders, which turn queries and keys, have the same names; pass "
        "`config=` with the preset's name, or `layout='timm'` where nothing is turned, `layout='eva'` where it is"
    )


TIMM = Layout(
    name="timm",
    description="timm's VisionTransformer",
    config_class=PlainViTConfig,
    evidence=_evidence,
    infer=timm_infer,
    rules=timm_rules,
    # Facebook's DINO, MAE and DeiT have the same names and shapes, and within timm CLIP's models other numerics
    required=(
        ("num_heads", "image_size", "norm_eps", "activation", "global_pool"),
        ("block", "pool_include_prefix", "no_embed_class"),
    ),
    defaults=lambda values: {},
    fixed=PLAIN,
    components=timm_components,
    conditions=_conditions,
    resample=lambda config: "bicubic_antialias",
    heads=(("head", "head"), ("head_dist", "head_dist")),
    unsettled=_unsettled,
    hint=(
        "; or say who published the weights with `layout='deit'`, 'dino', 'mae' ..., which settles norm_eps, "
        "activation and global_pool; a model built with block_fn=ResPostBlock needs `block='res_post'` beside these: "
        "its tensors are those of the standard block"
    ),
)
