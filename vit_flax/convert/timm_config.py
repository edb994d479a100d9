"""timm's config.json, also inside of transformers' wrappers, and open_clip's, as fields of a model's config.

Arguments that change what a model computes are translated, or refused by name; what tensors tell is left to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vit_flax.config import ViTConfig
from vit_flax.convert.beit import BEIT
from vit_flax.convert.checkpoint import one_line
from vit_flax.convert.eva import EVA
from vit_flax.convert.layout import Layout, ratio_for
from vit_flax.convert.open_clip import OPEN_CLIP_EVA, OPEN_CLIP_TIMM
from vit_flax.convert.rules import ConversionError
from vit_flax.convert.timm import TIMM
from vit_flax.convert.timm_sam import TIMM_SAM
from vit_flax.convert.timm_sam2 import TIMM_SAM2
from vit_flax.presets import find_preset, get_preset

# whose names the models of timm's constructors have, and those inside of open_clip's; each is of another family
TIMM_LAYOUTS: tuple[Layout, ...] = (TIMM, EVA, BEIT, TIMM_SAM, TIMM_SAM2)
_TRUNKS: tuple[Layout, ...] = (OPEN_CLIP_TIMM, OPEN_CLIP_EVA)

Told = tuple[str, str, dict[str, Any]]  # what messages call the config, the layout of its tensors, the fields

# timm's constructor arguments that are fields under the same name
_FIELDS = {
    "class_token", "depth", "embed_dim", "fc_norm", "final_norm", "in_chans", "init_values", "mlp_ratio",
    "no_embed_class", "num_classes", "num_heads", "pool_include_prefix", "pre_norm", "proj_bias", "qk_norm", "qkv_bias",
    "reg_tokens", "scale_attn_norm", "scale_mlp_norm", "attn_pool_num_heads", "attn_pool_mlp_ratio",
    "window_size", "global_attn_indexes", "use_rel_pos", "stages", "window_sizes", "query_pools", "query_stride",
    "pos_embed_grid", "patch_kernel", "patch_stride", "patch_padding",
}  # fmt: skip
# of training, of how the model is made, or of sizes other than the table's own
_HARMLESS = {
    "attn_drop_rate", "drop_path_rate", "drop_rate", "fix_init", "patch_drop_rate", "pos_drop_rate", "proj_drop_rate",
    "weight_init", "dynamic_img_pad", "dynamic_img_size", "strict_img_size", "pretrained", "checkpoint_path",
    "cache_dir",
}  # fmt: skip
_ONLY: dict[str, tuple[Any, ...]] = {
    "act_layer": (None,), "norm_layer": (None,), "mlp_layer": (None,), "features_only": (False,),
}  # fmt: skip
_POS_EMBEDS = {"learn": "learned", "none": "none", "": "none"}
# names of classes, without the modules they are in, as far as they can stand in JSON
_ACTIVATIONS = {
    "gelu": "gelu", "gelutanh": "gelu_tanh", "silu": "silu", "swish": "silu", "quickgelu": "quick_gelu", "relu": "relu",
}  # fmt: skip
_NORMS = {"layernorm": "layernorm", "rmsnorm": "rmsnorm"}
_MLPS = {"mlp": "mlp", "swiglu": "swiglu", "swiglupacked": "swiglu_packed"}
_NORM_EPS = 1e-6  # of timm's own norms, which such a name stands for


def read_timm_config(values: Mapping[str, Any]) -> Told:
    """Follows timm's own order: model_args, then what pretrained_cfg says, then the architecture's defaults."""
    name = str(values["architecture"])
    cfg = values.get("pretrained_cfg") or values  # older files have all in one
    arguments = dict(values.get("model_args") or {})
    size = cfg.get("input_size")
    if size is not None:
        arguments.setdefault("in_chans", size[0])
        if cfg.get("fixed_input_size", True):
            arguments.setdefault("img_size", size[1:])
    for source in (values, cfg):  # the file's own number of classes before that of the weights it started from
        if isinstance(source.get("num_classes"), int) and source["num_classes"] >= 0:
            arguments.setdefault("num_classes", source["num_classes"])
    if cfg.get("global_pool") is not None:
        arguments.setdefault("global_pool", cfg["global_pool"])
    preset = _preset(name, cfg.get("tag"))
    return f"config.json ({name})", layout_of(preset).name, _told(name, preset, arguments)


def read_timm_backbone(values: Mapping[str, Any]) -> Told:
    """Returns what the config of transformers' TimmBackbone says: tokens after some block, without pooling or norm."""
    name = str(values["backbone"]).rpartition("/")[2]
    if not values.get("features_only", True):
        raise ConversionError(f"timm_backbone {name[:60]!r} with features_only=False")
    preset = _preset(name, None)
    fields = _told(name, preset, {"in_chans": values.get("num_channels", 3), "global_pool": "", "num_classes": 0})
    # blocks behind the one that is asked for are cut off, and the norm with them: the tensors tell
    left = ("depth", "final_norm", "fc_norm")
    fields = {field: value for field, value in fields.items() if field not in left}
    return f"config.json (timm_backbone, {name})", layout_of(preset).name, fields


def _preset(name: str, tag: Any) -> ViTConfig:
    return (find_preset(f"{name}.{tag}") or get_preset(name)).config


def layout_of(config: ViTConfig, layouts: tuple[Layout, ...] = TIMM_LAYOUTS) -> Layout:
    """Returns the layout of a config's family, or else the first."""
    return next((layout for layout in layouts if layout.config_class == config.family), layouts[0])


def _told(name: str, preset: ViTConfig, arguments: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    refused = []
    layout = layout_of(preset)
    spelled = {argument: field for field, argument in layout.arguments.items()}
    for given, value in arguments.items():
        argument = spelled.get(given, given)
        kind = str(value).rpartition(".")[2].replace("_", "").lower()  # torch.nn.SiLU, silu, quick_gelu
        if argument == "img_size":
            fields["image_size"] = _pair(value)
        elif argument == "patch_size":
            fields["patch_size"] = _pair(value)
        elif argument == "global_pool":
            fields["global_pool"] = value or "none"
        elif argument == "neck_chans":
            fields["neck_chans"] = value or 0  # a norm is there without a neck
        elif argument == "pos_embed" and value in _POS_EMBEDS:
            fields["pos_embed"] = _POS_EMBEDS[value]
        elif argument == "use_abs_pos":
            fields["pos_embed"] = "learned" if value else "none"
        elif argument == "act_layer" and kind in _ACTIVATIONS:
            fields["activation"] = _ACTIVATIONS[kind]
        elif argument == "norm_layer" and kind in _NORMS:
            fields |= {"norm_layer": _NORMS[kind], "norm_eps": _NORM_EPS}
        elif argument == "mlp_layer" and kind in _MLPS:
            fields["mlp_layer"] = _MLPS[kind]
        elif argument == "ref_feat_shape" and hasattr(preset, "rope_ref_grid"):
            fields["rope_ref_grid"] = None if value is None else _pair(value)
        elif argument in _FIELDS and hasattr(preset, argument):
            fields[argument] = tuple(value) if isinstance(value, list) else value
        elif argument in _HARMLESS or (argument in _ONLY and value in _ONLY[argument]):
            continue
        else:
            refused.append(f"{given}={one_line(repr(value))[:60]}")
    if refused:
        raise ConversionError(f"architecture {name[:60]!r} with model_args {', '.join(refused)}")
    if layout == TIMM_LAYOUTS[0]:  # two biases of timm's VisionTransformer have other parts' arguments
        fields |= {"patch_bias": not fields["pre_norm"]} if "pre_norm" in fields else {}
        fields |= {"mlp_bias": fields["proj_bias"]} if "proj_bias" in fields else {}
    fields |= layout.implied({**preset.fields(), **fields})
    mlp_layer = fields.get("mlp_layer", preset.mlp_layer)
    if mlp_layer == "swiglu_packed" and ("mlp_ratio" in fields or preset.mlp_layer != mlp_layer):
        # timm counts gate and value together, this library what comes of them
        width = fields.get("embed_dim", preset.embed_dim)
        fields["mlp_ratio"] = ratio_for(int(width * fields.get("mlp_ratio", preset.mlp_ratio)) // 2, width)
    if "fc_norm" not in fields and fields.get("global_pool", preset.global_pool) != preset.global_pool:
        # where the norm stands follows from the pooling, unless the architecture says otherwise: the tensors tell
        told = _public(preset.replace(**fields, fc_norm=False))
        return {field: value for field, value in told.items() if field not in ("fc_norm", "final_norm")}
    return _public(preset.replace(**fields))


# Of open_clip's CLIPVisionCfg: what is read below, of training or of the text tower, and the only values of the rest.
_READ = {
    "layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "ls_init_value", "no_ln_pre",
    "final_ln_after_pool", "pool_type", "act_kwargs", "norm_kwargs", "timm_model_name", "timm_pool",
}  # fmt: skip
_BESIDE = {
    "patch_dropout", "output_tokens", "attn_pooler_queries", "attn_pooler_heads", "attn_pooler_n_queries",
    "timm_model_pretrained", "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path", "pos_embed_type",
}  # fmt: skip
_POOLS = {"tok": "token", "avg": "avg", "none": "none"}


def read_open_clip_config(values: Mapping[str, Any]) -> Told:
    """Returns what an open_clip_config.json says of the image tower.

    Reference: open_clip.model.CLIPVisionCfg and _build_vision_tower.
    """
    model = values["model_cfg"]
    tower = model["vision_cfg"]
    refused = [f"{name}={one_line(repr(v))[:60]}" for name, v in tower.items() if name not in _READ | _BESIDE and v]
    if refused:
        raise ConversionError(f"vision_cfg with {', '.join(refused)}")
    size = _pair(tower.get("image_size", 224))
    if name := tower.get("timm_model_name"):
        preset = _preset(name, None)
        arguments = {"img_size": size, **({"global_pool": tower["timm_pool"]} if tower.get("timm_pool") else {})}
        fields = _told(name, preset, arguments)
        told = {field: value for field, value in fields.items() if field not in ("num_classes", "head_bias")}
        return f"open_clip_config.json ({name})", layout_of(preset, _TRUNKS).name, told
    layers, width, pool = tower.get("layers", 12), tower.get("width", 768), tower.get("pool_type", "tok")
    norm, act = dict(tower.get("norm_kwargs") or {}), dict(tower.get("act_kwargs") or {})
    approximate = act.get("approximate", "none")
    if not isinstance(layers, int):
        raise ConversionError(f"vision_cfg with layers={one_line(repr(layers))[:60]}: the tower is a ResNet")
    refused += [f"pool_type={pool!r}"] if pool not in _POOLS else []
    refused += [f"norm_kwargs={norm}"] if set(norm) - {"eps"} else []
    refused += [f"act_kwargs={act}"] if set(act) - {"approximate"} or approximate not in ("none", "tanh") else []
    if refused:
        raise ConversionError(f"vision_cfg with {', '.join(refused)}")
    exact = "gelu" if approximate == "none" else "gelu_tanh"
    return "open_clip_config.json", "open_clip", {
        "image_size": size,
        "patch_size": _pair(tower.get("patch_size", 16)),
        "embed_dim": width,
        "depth": layers,
        "num_heads": width // tower.get("head_width", 64),
        "mlp_ratio": tower.get("mlp_ratio", 4.0),
        "init_values": tower.get("ls_init_value"),
        "pre_norm": not tower.get("no_ln_pre", False),
        "fc_norm": bool(tower.get("final_ln_after_pool", False)),
        "global_pool": _POOLS[pool],
        "norm_eps": norm.get("eps", 1e-5),
        "activation": "quick_gelu" if model.get("quick_gelu", False) else exact,
    }  # fmt: skip


# Of open_clip's CLIPTextCfg: what is read below, and what is of the tokeniser or of training alone.
_TEXT_READ = {
    "context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "ls_init_value", "eos_id",
    "no_causal_mask", "pool_type", "act_kwargs", "norm_kwargs",
}  # fmt: skip
# the tensors tell the projection
_TEXT_BESIDE = {
    "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "pad_id", "proj_bias", "proj_type", "output_tokens",
    "hf_model_pretrained", "hf_proj_type", "hf_pooler_type",
}  # fmt: skip
_TEXT_POOLS = ("eos", "argmax", "last", "first")


def read_open_clip_text(values: Mapping[str, object]) -> dict[str, object]:
    """Returns what an open_clip_config.json says of the text tower.

    Reference: open_clip.model.CLIPTextCfg and _build_text_tower.
    """
    model: Any = values["model_cfg"]
    tower = model.get("text_cfg") or {}
    known = _TEXT_READ | _TEXT_BESIDE
    refused = [f"{name}={one_line(repr(v))[:60]}" for name, v in tower.items() if name not in known and v]
    norm, act = dict(tower.get("norm_kwargs") or {}), dict(tower.get("act_kwargs") or {})
    pool, approximate = tower.get("pool_type", "argmax"), act.get("approximate", "none")
    refused += [f"pool_type={pool!r}"] if pool not in _TEXT_POOLS else []
    refused += [f"norm_kwargs={norm}"] if set(norm) - {"eps"} else []
    refused += [f"act_kwargs={act}"] if set(act) - {"approximate"} or approximate not in ("none", "tanh") else []
    if refused:
        raise ConversionError(f"text_cfg with {', '.join(refused)} (`tower='image'` reads the image tower alone)")
    exact = "gelu" if approximate == "none" else "gelu_tanh"
    return {
        "vocab_size": tower.get("vocab_size", 49408),
        "context_length": tower.get("context_length", 77),
        "embed_dim": tower.get("width", 512),
        "depth": tower.get("layers", 12),
        "num_heads": tower.get("heads", 8),
        "mlp_ratio": tower.get("mlp_ratio", 4.0),
        "init_values": tower.get("ls_init_value"),
        "causal": not tower.get("no_causal_mask", False),
        "pool": pool,
        "eos_token_id": tower.get("eos_id", 2) if pool == "eos" else None,
        "norm_eps": norm.get("eps", 1e-5),
        "activation": "quick_gelu" if model.get("quick_gelu", False) else exact,
    }


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)  # pyright: ignore[reportReturnType]


def _public(config: ViTConfig) -> dict[str, Any]:
    return config.fields()
