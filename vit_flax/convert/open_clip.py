"""Layouts of OpenAI's CLIP and open_clip.

`open_clip` has their own image tower, `open_clip_tower` it alone, `open_clip_timm` one of timm.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import PlainViTConfig, ViTConfig
from vit_flax.convert.eva import EVA
from vit_flax.convert.layout import Layout, Shapes, any_match, containing, count_blocks, only, ratio_for, vote
from vit_flax.convert.rules import CONV, DENSE, UNBATCHED, VECTOR, ConversionError, Drop, Rule
from vit_flax.convert.timm import TIMM, linear, named, norm

_BLOCK = "visual.transformer.resblocks.{i}"
HEAD_WIDTH = 64  # of OpenAI's own models, all of them: its loader says so
ARCHIVE = ("input_resolution", "context_length", "vocab_size")  # in OpenAI's own files alone
_CUSTOM = {"head_scale", "logit_scale", "ln_q", "ln_k", "ln_inner", "ln_attn"}  # parts of open_clip's custom block


def text_tower() -> tuple[Drop, ...]:
    """Returns what stands beside the image tower."""
    # a placeholder stands for one word between dots, and a text tower of any kind may be `text`
    inside = [".".join("{" + letter + "}" for letter in "abcdefgh"[:depth]) for depth in range(1, 9)]
    blocks = [f"transformer.resblocks.{{i}}.{rest}" for rest in inside[:3]]
    single = ("token_embedding.weight", "positional_embedding", "text_projection", "ln_final.weight", "ln_final.bias")
    return (
        *(Drop(name, "the text tower") for name in (*single, *blocks, *(f"text.{rest}" for rest in inside))),
        *(Drop(name, "joins images and texts") for name in ("logit_scale", "logit_bias")),
        Drop("attn_mask", "a constant of the text tower"),
        *(Drop(name, "a number that OpenAI's archives hold") for name in ARCHIVE),
    )


def block_rules(block: str) -> tuple[Rule, ...]:
    """Returns the rules of the blocks, which `block` names."""
    return (
        *norm(f"{block}.ln_{{n}}", "blocks_{i}/norm{n}"),
        Rule(f"{block}.attn.in_proj_weight", "blocks_{i}/attn/qkv/kernel", DENSE),
        Rule(f"{block}.attn.in_proj_bias", "blocks_{i}/attn/qkv/bias"),
        *linear(f"{block}.attn.out_proj", "blocks_{i}/attn/proj"),
        Rule(f"{block}.ls_{{n}}.gamma", "blocks_{i}/ls{n}/gamma"),
        *linear(f"{block}.mlp.c_fc", "blocks_{i}/mlp/fc1"),
        *linear(f"{block}.mlp.c_proj", "blocks_{i}/mlp/fc2"),
    )


def _rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    return (
        Rule("visual.conv1.weight", "patch_embed/proj/kernel", CONV),
        Rule("visual.class_embedding", "cls_token", VECTOR),
        Rule("visual.positional_embedding", "pos_embed", UNBATCHED),
        *norm("visual.ln_pre", "norm_pre"),
        *block_rules(_BLOCK),
        *norm("visual.ln_post", "fc_norm" if config.fc_norm else "norm"),
        Rule("visual.proj", "head/kernel"),  # (in, out) as it is: the tower multiplies by it from the right
        *text_tower(),
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    if any_match(shapes, "visual.{pool}.query"):
        raise ConversionError("layout 'open_clip': attentional pooling (CoCa's visual.attn_pool) is not supported")
    custom = [name for name in shapes if name.startswith("visual.") and _CUSTOM & set(name.split("."))]
    if custom:
        raise ConversionError(f"layout 'open_clip': a custom block ({custom[0]}) is not supported")
    depth = count_blocks(shapes, f"{_BLOCK}.{{a}}.{{b}}")
    dim = vote(
        shapes,
        ("visual.class_embedding", 0),
        ("visual.positional_embedding", 1),
        ("visual.ln_post.weight", 0),
        (f"{_BLOCK}.ln_{{n}}.weight", 0),
        (f"{_BLOCK}.mlp.c_fc.weight", 1),
    )
    if depth is None or dim is None:
        raise ConversionError("no tensors named visual.transformer.resblocks.0...: there is no block to read")
    values: dict[str, Any] = {
        "depth": depth,
        "embed_dim": dim,
        "num_classes": vote(shapes, ("visual.proj", 1)) or 0,
        "pre_norm": any_match(shapes, "visual.ln_pre.weight"),
        "init_values": 1e-5 if any_match(shapes, f"{_BLOCK}.ls_{{n}}.gamma") else None,  # only what a new model has
    }
    if known.get("global_pool") == "token":
        values["fc_norm"] = False  # pooled before or after, the class token is normalised alone
    if any_match(shapes, *ARCHIVE):
        values |= {"norm_eps": 1e-5, "activation": "quick_gelu", "global_pool": "token", "fc_norm": False}
        values |= {"num_heads": dim // HEAD_WIDTH} if dim % HEAD_WIDTH == 0 else {}
    hidden = vote(shapes, (f"{_BLOCK}.mlp.c_fc.weight", 0), (f"{_BLOCK}.mlp.c_proj.weight", 1))
    if hidden is not None:
        values["mlp_ratio"] = ratio_for(hidden, dim)
    kernel, rows = shapes.get("visual.conv1.weight", ()), vote(shapes, ("visual.positional_embedding", 0))
    if len(kernel) == 4:
        values["in_chans"], values["patch_size"] = kernel[1], tuple(kernel[2:])
        side = math.isqrt(rows - 1) if rows else 0
        if rows and side * side == rows - 1:  # OpenAI's own loader takes the grid for square
            values["image_size"] = (side * kernel[2], side * kernel[3])
    return values


def _defaults(_values: Mapping[str, Any]) -> dict[str, Any]:
    return {"class_token": True, "patch_bias": False, "head_bias": False}


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    pairs = [("ln_1", "norm1"), ("attn", "attn"), ("ln_2", "norm2")]
    pairs += [("mlp.c_fc", "mlp/fc1"), ("mlp.c_proj", "mlp/fc2"), ("mlp", "mlp")]
    pairs += [("ls_1", "ls1"), ("ls_2", "ls2")] * (config.init_values is not None)
    return (
        *([("visual.ln_pre", "norm_pre")] * config.pre_norm),
        ("visual.transformer.resblocks.0:input", "blocks_0:input"),
        *((f"{_BLOCK}.{a}", f"blocks_{{i}}/{b}") for a, b in pairs),
        (_BLOCK, "blocks_{i}"),
        ("visual.ln_post", "fc_norm" if config.fc_norm else "norm"),
    )


OPEN_CLIP = Layout(
    name="open_clip",
    description="the image tower of OpenAI's CLIP and of open_clip",
    config_class=PlainViTConfig,
    evidence=containing("visual.class_embedding"),
    infer=_infer,
    rules=_rules,
    required=(
        ("num_heads", "activation", "global_pool", "norm_eps"), ("fc_norm",), ("image_size", "patch_size", "in_chans"),
    ),
    defaults=_defaults,
    fixed=only(PlainViTConfig,
        (
            "image_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio",
            "pre_norm", "fc_norm", "init_values", "norm_eps",
        ),
        patch_bias=(False,),
        head_bias=(False,),
        activation=("quick_gelu", "gelu", "gelu_tanh"),
        global_pool=("token", "avg"),
        pos_embed=("learned", "sincos_2d"),
    ),
    components=_components,
    resample=lambda config: "bicubic_antialias",
    hint=(
        "; the model's JSON in open_clip tells them: `activation='quick_gelu'` where it says quick_gelu "
        "(OpenAI's and some of others'), else 'gelu'; global_pool and fc_norm as pool_type and final_ln_after_pool, "
        "'token' and False where it has none; norm_eps as norm_kwargs, else 1e-5"
    ),
)  # fmt: skip

_VISUAL = "visual."


def _tower_rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
    whole = (rule for rule in _rules(config) if isinstance(rule, Rule))
    return tuple(dataclasses.replace(rule, source=rule.sources[0].removeprefix(_VISUAL)) for rule in whole)


OPEN_CLIP_TOWER = dataclasses.replace(
    OPEN_CLIP,
    name="open_clip_tower",
    description="the image tower of OpenAI's CLIP and of open_clip, by itself",
    evidence=named("class_embedding", "conv1", "transformer.resblocks.0"),
    infer=lambda shapes, known: _infer({f"{_VISUAL}{name}": shape for name, shape in shapes.items()}, known),
    rules=_tower_rules,
    components=lambda config: tuple((a.removeprefix(_VISUAL), b) for a, b in _components(config)),
)

_TRUNK = "visual.trunk."
_PROJ = "visual.head.proj"


def _trunk(layout: Layout, name: str, description: str, evidence: Any, head: str) -> Layout:
    """Returns timm's layout of a tower as open_clip has it, `head` being where the projection is written.

    Without a projection of open_clip's own, the tower's head is one.
    """

    def rules(config: ViTConfig) -> tuple[Rule | Drop, ...]:
        trunk = (rule for rule in layout.rules(config) if isinstance(rule, Rule))
        inside = (
            dataclasses.replace(rule, source=tuple(_TRUNK + template for template in rule.sources))
            for rule in trunk
            if not rule.target.startswith("head")
        )
        return (*inside, *linear(head, "head"), *text_tower())

    def infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
        trunk = {name.removeprefix(_TRUNK): shape for name, shape in shapes.items() if name.startswith(_TRUNK)}
        values = layout.infer(trunk, known)
        values["num_classes"] = vote(shapes, (f"{head}.weight", 0)) or 0
        values["head_bias"] = not values["num_classes"] or any_match(shapes, f"{head}.bias")
        return values

    def components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
        pairs = ((_TRUNK + torch, linen) for torch, linen in layout.components(config) if not torch.startswith("head"))
        return (*pairs, *(((head, "head"),) if config.num_classes else ()))

    def unsettled(names: Collection[str]) -> str | None:
        others = layout.unsettled(names)
        return others and others.replace("'timm'", "'open_clip_timm'").replace("'eva'", "'open_clip_eva'")

    return dataclasses.replace(
        layout,
        name=name,
        description=description,
        evidence=evidence,
        infer=infer,
        rules=rules,
        fixed={**layout.fixed, "head_bias": (True, False)},
        components=components,
        aliases=tuple((f"{other}.{{part}}", f"{head}.{{part}}") for other in {_PROJ, f"{_TRUNK}head"} - {head}),
        heads=(),
        belongs=evidence,
        unsettled=unsettled,
    )


OPEN_CLIP_TIMM = _trunk(
    TIMM,
    "open_clip_timm",
    "open_clip with an image tower of timm",
    containing("visual.trunk.blocks.0.attn.qkv."),
    _PROJ,
)


def _eva_evidence(names: Collection[str]) -> str | None:
    trunk = {name.removeprefix(_TRUNK) for name in names if name.startswith(_TRUNK)}
    return (found := EVA.evidence(trunk)) and f"in visual.trunk {found}"


OPEN_CLIP_EVA = dataclasses.replace(
    _trunk(EVA, "open_clip_eva", "open_clip with an image tower of timm's Eva", _eva_evidence, f"{_TRUNK}head"),
    belongs=containing("visual.trunk.blocks.0.attn.proj."),
)
