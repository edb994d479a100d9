"""The layout of timm's VisionTransformer and VisionTransformerDistilled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import ViTConfig
from vit_flax.convert.layout import Layout, Shapes, any_match, count_blocks, ratio_for, vote
from vit_flax.convert.rules import CONV, DENSE, ConversionError, Rule, join, join_dense


def linear(source: str, target: str) -> tuple[Rule, Rule]:
    """Returns the two rules of a Linear."""
    return Rule(f"{source}.weight", f"{target}/kernel", DENSE), Rule(f"{source}.bias", f"{target}/bias")


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """Returns the two rules of a LayerNorm, the first of which an RMSNorm has too."""
    return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


def joined(sources: tuple[str, ...], target: str, shares: tuple[int, ...]) -> tuple[Rule, Rule]:
    """Returns the two rules of several Linears that are one in the model."""
    return (
        Rule(tuple(f"{source}.weight" for source in sources), f"{target}/kernel", join_dense(*shares)),
        Rule(tuple(f"{source}.bias" for source in sources), f"{target}/bias", join(*shares)),
    )


def timm_rules(config: ViTConfig) -> tuple[Rule, ...]:
    """Returns timm's table."""
    mlp = "blocks.{i}.mlp", "blocks_{i}/mlp"
    if config.mlp_layer == "swiglu":
        fc1 = joined((f"{mlp[0]}.fc1_g", f"{mlp[0]}.fc1_x"), f"{mlp[1]}/fc1", (1, 1))
    else:
        fc1 = linear(f"{mlp[0]}.fc1", f"{mlp[1]}/fc1")
    return (
        Rule("cls_token", "cls_token"),
        Rule("dist_token", "dist_token"),
        Rule("reg_token", "reg_token"),
        Rule("pos_embed", "pos_embed"),
        Rule("patch_embed.proj.weight", "patch_embed/proj/kernel", CONV),
        Rule("patch_embed.proj.bias", "patch_embed/proj/bias"),
        *norm("patch_embed.norm", "patch_embed/norm"),
        *norm("norm_pre", "norm_pre"),
        *norm("blocks.{i}.norm{n}", "blocks_{i}/norm{n}"),
        *linear("blocks.{i}.attn.qkv", "blocks_{i}/attn/qkv"),
        *norm("blocks.{i}.attn.{qk}_norm", "blocks_{i}/attn/{qk}_norm"),
        *norm("blocks.{i}.attn.norm", "blocks_{i}/attn/norm"),
        *linear("blocks.{i}.attn.proj", "blocks_{i}/attn/proj"),
        Rule("blocks.{i}.ls{n}.gamma", "blocks_{i}/ls{n}/gamma"),
        *fc1,
        *linear(f"{mlp[0]}.fc2", f"{mlp[1]}/fc2"),
        *norm(f"{mlp[0]}.norm", f"{mlp[1]}/norm"),
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


def timm_infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what tensors under timm's names tell, given what is known already."""
    block = "blocks.{i}"
    depth = count_blocks(shapes, f"{block}.{{a}}.{{b}}.{{c}}")
    dim = vote(shapes, ("cls_token", -1), ("pos_embed", -1), (f"{block}.norm{{n}}.weight", 0), ("norm.weight", 0))
    if depth is None or dim is None:
        raise ConversionError("no tensors named blocks.0...: there is no block to read")

    def has(*templates: str) -> bool:
        return any_match(shapes, *templates)

    values: dict[str, Any] = {
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
        "proj_bias": has(f"{block}.attn.proj.bias"),
        "scale_attn_norm": has(f"{block}.attn.norm.weight"),
        "init_values": 1e-5 if has(f"{block}.ls{{n}}.gamma") else None,  # only sets what a new model starts with
        "mlp_bias": has(f"{block}.mlp.fc2.bias"),
        "scale_mlp_norm": has(f"{block}.mlp.norm.weight"),
        "final_norm": has("norm.weight", "fc_norm.weight"),
        "fc_norm": has("fc_norm.weight"),
        "num_classes": vote(shapes, ("head.weight", 0), ("head.bias", 0)) or 0,
        "head_dist": has("dist_token"),
    }
    if has("attn_pool.latent"):
        values["global_pool"] = "map"
    hidden = vote(shapes, (f"{block}.mlp.fc2.weight", 1))
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
    if rows is None or size is None or patch is None:
        return {}
    (height, width), (ph, pw) = ((v, v) if isinstance(v, int) else v for v in (size, patch))
    prefix = known["class_token"] + known["dist_token"] + known["reg_tokens"]
    return {"no_embed_class": True} if prefix and rows == (height // ph) * (width // pw) else {}


def timm_components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    """Returns the pairs of modules."""
    inside = ["norm1", "attn.qkv", "attn.proj:input", "attn.proj", "attn", "norm2:input", "norm2"]
    inside += ["mlp.fc2:input", "mlp.fc2", "mlp"]
    inside += ["mlp.fc1"] * (config.mlp_layer != "swiglu")
    inside += ["attn.q_norm", "attn.k_norm"] * config.qk_norm
    inside += ["attn.norm"] * config.scale_attn_norm + ["mlp.norm"] * config.scale_mlp_norm
    inside += ["ls1", "ls2"] * (config.init_values is not None)
    outside = ["norm_pre"] * config.pre_norm
    outside += ["norm"] * (config.final_norm and not config.fc_norm) + ["fc_norm"] * config.fc_norm
    if config.global_pool == "map":
        outside += ["attn_pool.norm", "attn_pool.mlp", "attn_pool"]
    outside += ["head:input", "head"] * (config.num_classes > 0)
    outside += ["head_dist"] * (config.num_classes > 0 and config.head_dist)
    return (
        ("patch_embed", "patch_embed"),
        ("blocks.0:input", "blocks_0:input"),  # prefix tokens and positions are in place
        *((f"blocks.{{i}}.{part}", f"blocks_{{i}}/{part.replace('.', '/')}") for part in inside),
        ("blocks.{i}", "blocks_{i}"),
        *((part, part.replace(".", "/")) for part in outside),
    )


def named(*needles: str) -> Any:
    """Returns the evidence of a layout: for every needle, a name that has it as a whole or as its beginning."""

    def evidence(names: Collection[str]) -> str | None:
        hits = [next((name for name in names if name == n or name.startswith(f"{n}.")), None) for n in needles]
        return " and ".join(str(hit) for hit in hits) if all(hits) else None

    return evidence


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
    "head_bias": (True,),
    "global_pool": ("token", "avg", "avgmax", "max", "map", "none"),
}

TIMM = Layout(
    name="timm",
    description="timm's VisionTransformer",
    config_class=ViTConfig,
    evidence=named("blocks.0.attn.qkv", "patch_embed.proj"),
    infer=timm_infer,
    rules=timm_rules,
    # Facebook's DINO, MAE and DeiT have the same names and shapes, and within timm CLIP's models other numerics
    required=(("num_heads", "image_size", "norm_eps", "activation", "global_pool"),),
    defaults=lambda values: {},
    fixed=PLAIN,
    components=timm_components,
    conditions=_conditions,
    resample=lambda config: "bicubic_antialias",
    hint=(
        "; or say who published the weights with layout='deit', 'dino', 'mae' ..., which settles norm_eps, activation "
        "and global_pool"
    ),
)
