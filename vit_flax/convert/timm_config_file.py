"""The config.json that timm writes beside weights, for models that timm.create_model("local-dir:...") builds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_flax.config import ViTConfig
from vit_flax.convert.timm_config import layout_of

_GENERIC = "vit_base_patch16_224"  # built with arguments that say all of a plain ViT
_ARGUMENTS = (
    "class_token", "depth", "embed_dim", "fc_norm", "final_norm", "init_values", "mlp_ratio", "no_embed_class",
    "num_heads", "pool_include_prefix", "pre_norm", "proj_bias", "qk_norm", "qkv_bias", "reg_tokens", "scale_attn_norm",
    "scale_mlp_norm",
)  # fmt: skip
_OTHERS = ("patch_size", "global_pool")
_FREE = ("num_classes", "image_size", "in_chans")  # an architecture has any
# what every constructor takes on top of an architecture's own arguments
_SIZES = {"embed_dim": "embed_dim", "depth": "depth", "num_heads": "num_heads", "mlp_ratio": "mlp_ratio",
          "init_values": "init_values", "window_size": "window_size", "global_attn_indexes": "global_attn_indexes",
          "neck_chans": "neck_chans", "patch_size": "patch_size", "reg_tokens": "reg_tokens"}  # fmt: skip
_ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu")
_NORMS = ("layernorm", "rmsnorm")


def timm_config(config: ViTConfig) -> dict[str, object] | None:
    """Returns architecture, classes and arguments of timm's constructor, or None where JSON cannot say the model."""
    from vit_flax.presets.tables import TIMM_MODELS

    told = config.to_dict()
    pool = "" if config.global_pool == "none" else config.global_pool
    shared = {
        "num_classes": config.num_classes,
        "num_features": config.feature_dim,
        "global_pool": pool,
    }
    layout = layout_of(config)
    size: dict[str, object] = {"in_chans": config.in_chans}
    if layout.arguments.get("image_size", "img_size"):
        size["img_size"] = list(config.image_size)
    for name, preset in TIMM_MODELS.items():
        if {**preset.config.to_dict(), **{field: told[field] for field in _FREE}} == told:
            return {"architecture": name.split(".")[0], **shared, "model_args": size}
    if not _is_plain(told):
        names = {field: name for field, name in {**_SIZES, **layout.arguments}.items() if name}
        sized = _other_sizes(told, names, layout.implied(told))
        return sized and {"architecture": sized[0], **shared, "model_args": {**sized[1], **size}}
    arguments = {name: told[name] for name in _ARGUMENTS}
    arguments |= {"patch_size": config.patch_size[0], "global_pool": pool, "act_layer": config.activation}
    arguments |= {"pos_embed": "none" if config.pos_embed == "none" else "learn", "norm_layer": config.norm_layer}
    return {"architecture": _GENERIC, **shared, "model_args": {**arguments, **size}}


def _other_sizes(
    told: Mapping[str, Any], names: Mapping[str, str], implied: Mapping[str, object]
) -> tuple[str, dict[str, Any]] | None:
    """Returns the first architecture that differs in nothing but its sizes, and the arguments that give these."""
    from vit_flax.presets.tables import TIMM_MODELS

    if any(told[field] != (list(v) if isinstance(v, tuple) else v) for field, v in implied.items()):
        return None
    for name, preset in TIMM_MODELS.items():
        own = preset.config.to_dict()
        other = {field for field in told.keys() | own.keys() if told.get(field) != own.get(field)} - {*_FREE}
        other -= implied.keys()
        if other <= names.keys() and not any(told[field] is None or own[field] is None for field in other):
            arguments = {names[field]: told[field] for field in sorted(other)}
            if "patch_size" in arguments and len({*arguments["patch_size"]}) == 1:
                arguments["patch_size"] = arguments["patch_size"][0]
            return name.split(".")[0], arguments
    return None


def _is_plain(told: Mapping[str, Any]) -> bool:
    """Returns whether the arguments say everything: what is no argument has the value that timm has."""
    # norms have an epsilon of 1e-6 where they are told by name; patches have no bias before a first norm
    plain = {**ViTConfig().to_dict(), "patch_bias": not told.get("pre_norm"), "mlp_bias": told.get("proj_bias")}
    choices = {"activation": _ACTIVATIONS, "norm_layer": _NORMS, "pos_embed": ("learned", "sincos_2d", "none")}
    return (
        told.keys() == plain.keys()
        and all(told[name] in known for name, known in choices.items())
        and len(set(told["patch_size"])) == 1
        and all(told[name] == plain[name] for name in told.keys() - {*_ARGUMENTS, *_FREE, *choices, *_OTHERS})
    )
