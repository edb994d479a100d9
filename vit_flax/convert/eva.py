"""The layout of timm's Eva: EVA, EVA-02, Perception Encoder, RoPE-ViT and timm's own DINOv3."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import RopeViTConfig, ViTConfig
from vit_flax.convert.facebook import respelled
from vit_flax.convert.layout import Layout, Shapes, any_match, only
from vit_flax.convert.rules import Rule, join, join_dense
from vit_flax.convert.timm import TIMM, named, timm_components, timm_infer, timm_rules

_NAMES = ("ls{n}.gamma", "gamma_{n}")
_QKV = ("q_proj", "k_proj", "v_proj")


def qkv_rules(config: ViTConfig, source: str, target: str) -> tuple[Rule, ...]:
    """Returns the rules of queries, keys and values, in one layer or three, keys with or without a bias."""
    if config.qkv_fused:
        return tuple(Rule(f"{source}.{c}_bias", f"{target}/{c}_bias") for c in "qv")
    parts = [f"{source}.{part}" for part in _QKV]
    kernel = Rule(tuple(f"{part}.weight" for part in parts), f"{target}/qkv/kernel", join_dense(1, 1, 1))
    if config.key_bias:
        return kernel, Rule(tuple(f"{part}.bias" for part in parts), f"{target}/qkv/bias", join(1, 1, 1))
    return kernel, *(Rule(f"{source}.{c}_proj.bias", f"{target}/{c}_bias") for c in "qv")


def _rules(config: ViTConfig) -> tuple[Rule, ...]:
    rules = respelled(timm_rules(config), _NAMES)
    if not config.qkv_fused:
        rules = tuple(rule for rule in rules if "/attn/qkv/" not in rule.target)
    return (*rules, *qkv_rules(config, "blocks.{i}.attn", "blocks_{i}/attn"), Rule("rope.freqs", "rope_freqs"))


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    values = timm_infer(shapes, known)

    def has(part: str) -> bool:
        return any_match(shapes, f"blocks.{{i}}.{part}")

    split = has("attn.q_proj.weight")
    key_bias = has("attn.k_proj.bias") if split else has("attn.qkv.bias")
    values |= {
        "qkv_fused": not split,
        "key_bias": key_bias,
        "qkv_bias": key_bias or has("attn.q_proj.bias" if split else "attn.q_bias"),
        "attn_pool_mlp_ratio": None,
    }
    if has("gamma_{n}"):
        values["init_values"] = 1e-5  # only sets what a new model starts with
    else:
        values.pop("block", None)  # normalising last has the same names and shapes, but no LayerScale
    if any_match(shapes, "rope.freqs"):
        values["rope_type"] = "mixed"
    if "attn_pool.mlp.fc2.weight" in shapes:
        values["attn_pool_mlp_ratio"] = shapes["attn_pool.mlp.fc2.weight"][-1] / values["embed_dim"]
        values["pool_include_prefix"] = True
    else:
        values["attn_pool_num_heads"] = None
    kind = known.get("rope_type", values.get("rope_type"))
    if kind == "none":
        values |= {name: RopeViTConfig.fields[name] for name in (*_ROPE, *_COUNTED)}
    elif kind == "dinov3":
        values |= {"rope_rotate_half": True, "rope_grid_indexing": "ij", "rope_grid_offset": 0.0, "rope_ref_grid": None}
    elif kind == "mixed":
        values |= {"rope_rotate_half": False, "rope_grid_offset": 0.0, "rope_ref_grid": None}
    return values


def _evidence(names: Collection[str]) -> str | None:
    base = "blocks.0.attn.proj"
    wholly = [named("patch_embed.proj", base, own) for own in ("rope.freqs", "blocks.0.attn.q_proj")]
    wholly.append(named("patch_embed.proj", base, "blocks.0.attn.q_bias"))
    if "pos_embed" not in names or "norm_pre.weight" in names:
        wholly.append(named("patch_embed.proj", "blocks.0.gamma_1", base))
    return next((found for kind in wholly if (found := kind(names))), None)


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    # LayerScale is a parameter of the block itself, and the projections may be several: no modules to compare
    return tuple(pair for pair in timm_components(config) if ".ls" not in pair[0] and "attn.qkv" not in pair[0])


def _conditions(config: ViTConfig) -> list[str]:
    lines = []
    if config.patch_bias == config.pre_norm:
        lines.append(f"patch_bias={config.patch_bias} with pre_norm={config.pre_norm} (timm has one or the other)")
    if config.key_bias and not config.qkv_bias:
        lines.append("key_bias=True with qkv_bias=False (timm has no bias for keys alone)")
    if config.block == "res_post" and config.init_values is not None:
        lines.append("init_values with block='res_post' (it has no LayerScale there)")
    gated = config.mlp_layer != "mlp"
    if config.activation != ("silu" if gated else "gelu"):
        lines.append(f"activation={config.activation!r} with mlp_layer={config.mlp_layer!r}")
    if config.scale_mlp_norm and config.mlp_layer == "swiglu_packed":
        lines.append("scale_mlp_norm=True with mlp_layer='swiglu_packed' (it holds gate and value as two layers then)")
    if config.global_pool == "map" and not config.pool_include_prefix:
        lines.append("pool_include_prefix=False with global_pool='map' (it attends to all tokens)")
    return lines


_COUNTED = ("rope_grid_indexing", "rope_grid_offset", "rope_ref_grid")
_ROPE = ("rope_theta", "rope_rotate_half")
_FREE = (
    "image_size", "patch_size", "patch_bias", "in_chans", "num_classes", "embed_dim", "depth", "num_heads",
    "mlp_ratio", "scale_mlp_norm", "qkv_bias", "scale_attn_norm", "init_values", "norm_eps", "class_token",
    "reg_tokens", "no_embed_class", "pre_norm", "final_norm", "fc_norm", "pool_include_prefix", "key_bias",
    "qkv_fused", "rope_type", "attn_pool_num_heads", "attn_pool_mlp_ratio", *_ROPE, *_COUNTED,
)  # fmt: skip

EVA = Layout(
    name="eva",
    description="timm's Eva (EVA, EVA-02, Perception Encoder, RoPE-ViT, DINOv3)",
    config_class=RopeViTConfig,
    evidence=_evidence,
    infer=_infer,
    rules=_rules,
    required=(
        ("num_heads", "image_size", "norm_eps", "activation", "global_pool", "rope_type"),
        (*_ROPE, *_COUNTED),
        ("attn_pool_num_heads", "block", "no_embed_class"),
    ),
    defaults=lambda values: {},
    fixed=only(
        RopeViTConfig, _FREE, qk_scale=(None, 0), activation=("gelu", "silu"), pos_embed=("learned", "none"),
        mlp_layer=("mlp", "swiglu", "swiglu_packed"), block=("standard", "res_post"),
        global_pool=("token", "avg", "avgmax", "max", "map", "none"),
    ),
    components=_components,
    conditions=_conditions,
    heads=TIMM.heads,
    hint="; the preset of the model's name in timm tells them all",
    resample=TIMM.resample,
    arguments={"reg_tokens": "num_reg_tokens"},
    # what a preset of this family may be read from: without the rotation's own traces
    belongs=named("patch_embed.proj", "blocks.0.attn.proj"),
)  # fmt: skip
