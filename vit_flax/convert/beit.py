"""The layout of timm's Beit, which the original repositories of BEiT and BEiT v2 have as well."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from vit_flax.config import BeitConfig, ViTConfig
from vit_flax.convert.facebook import respelled
from vit_flax.convert.layout import Layout, Shapes, any_match, only
from vit_flax.convert.rules import Drop, Rule
from vit_flax.convert.timm import TIMM, named, timm_components, timm_infer, timm_rules

_NAMES = ("ls{n}.gamma", "gamma_{n}")
TABLE = "relative_position_bias_table"
_INDEX = "which row of a table belongs to two places follows from the grid"


def relative_rules(block: str) -> tuple[Rule | Drop, ...]:
    """Returns the rules of what BEiT has that a plain ViT has not; `block` is the beginning of a block's names."""
    return (
        *(Rule(f"{block}.attn.{c}_bias", f"blocks_{{i}}/attn/{c}_bias") for c in "qv"),
        Rule(f"{block}.attn.{TABLE}", f"blocks_{{i}}/attn/rel_pos_bias/{TABLE}"),
        Rule(f"rel_pos_bias.{TABLE}", f"rel_pos_bias/{TABLE}"),
        Rule("mask_token", "mask_token"),
        Drop(f"{block}.attn.relative_position_index", _INDEX),
        Drop("rel_pos_bias.relative_position_index", _INDEX),
    )


def _rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    return *respelled(timm_rules(config), _NAMES), *relative_rules("blocks.{i}")


def beit_infer(shapes: Shapes, known: Mapping[str, object]) -> dict[str, object]:
    """Returns what tensors under timm's names tell, given what is known already."""
    values = timm_infer(shapes, known)
    pooled = values["fc_norm"]
    return {
        **values,
        "qkv_bias": any_match(shapes, "blocks.{i}.attn.q_bias"),
        "init_values": 1e-5 if any_match(shapes, "blocks.{i}.gamma_{n}") else None,  # only sets what it starts with
        "rel_pos_bias": any_match(shapes, f"blocks.{{i}}.attn.{TABLE}"),
        "shared_rel_pos_bias": any_match(shapes, f"rel_pos_bias.{TABLE}"),
        "mask_token": any_match(shapes, "mask_token"),
        **({"global_pool": "avg"} if pooled else {}),
    }


def _evidence(names: Collection[str]) -> str | None:
    tables = (f"blocks.0.attn.{TABLE}", f"rel_pos_bias.{TABLE}")
    return next((found for table in tables if (found := named("patch_embed.proj", table)(names))), None)


BEIT = Layout(
    name="beit",
    description="BEiT and BEiT v2, timm's and the original",
    config_class=BeitConfig,
    evidence=_evidence,
    infer=beit_infer,
    rules=_rules,
    required=(("num_heads", "image_size", "global_pool"),),
    defaults=lambda values: {"norm_eps": 1e-6, "activation": "gelu"},
    fixed=only(
        BeitConfig,
        (
            "image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio",
            "qkv_bias", "init_values", "norm_eps", "fc_norm", "rel_pos_bias", "shared_rel_pos_bias", "mask_token",
        ),
        qk_scale=(None, 0), pos_embed=("learned", "none"), global_pool=("token", "avg", "none"),
    ),
    # LayerScale is a parameter of the block itself: no module to compare
    components=lambda config: tuple(pair for pair in timm_components(config) if ".ls" not in pair[0]),
    resample=TIMM.resample,
    heads=TIMM.heads,
    resample_rel_pos_bias="geometric",
    belongs=named("patch_embed.proj", "blocks.0.attn.proj"),
)  # fmt: skip
