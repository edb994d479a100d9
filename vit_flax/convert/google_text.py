"""big_vision's two-tower models: LiT, SigLIP and fixed-size SigLIP 2, `img/` beside `txt/`."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import TwoTowersConfig
from vit_flax.convert.google import BIG_VISION, BIG_VISION_SCAN, PARTS, block_rules, pool_rules, same
from vit_flax.convert.google_naflex import BIG_VISION_NAFLEX, BIG_VISION_NAFLEX_SCAN
from vit_flax.convert.layout import Layout, Shapes, any_match, count_blocks, ratio_for, vote
from vit_flax.convert.rules import ConversionError, Drop, Rule
from vit_flax.convert.two_towers import SCALAR, SUFFIX, TextHalf, moved, with_text

_IMAGE, _TEXT = "img/", "txt/"
_ENCODER = "Encoder_0"
_BLOCK = f"{_ENCODER}/encoderblock_{{i}}"
_POOLS = ("last", "first", "avg", "max", "map")


def _rules(config: TwoTowersConfig) -> tuple[Rule | Drop, ...]:
    heads = config.text.num_heads
    tower = (
        Rule("Embed_0/embedding", "token_embed"),
        Rule("pos_embedding", "pos_embed"),
        *block_rules(_BLOCK, PARTS, heads),
        *same(f"{_ENCODER}/encoder_norm", "norm", "scale", "bias"),
        *pool_rules(heads),
        *same("head", "head", "kernel", "bias"),
    )
    return (*moved(tower, _TEXT, "text/"), Rule("t", "logit_scale", SCALAR), Rule("b", "logit_bias", SCALAR))


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    tower = {name.removeprefix(_TEXT): shape for name, shape in shapes.items() if name.startswith(_TEXT)}
    depth = count_blocks(tower, f"{_BLOCK}/{PARTS[0]}/{{part}}")
    width = vote(tower, ("Embed_0/embedding", 1), ("pos_embedding", 2), (f"{_BLOCK}/{PARTS[0]}/scale", 0))
    if depth is None or width is None:
        raise ConversionError(f"no tensors named {_TEXT}{_ENCODER}/encoderblock...: there is no text tower")
    attention, mlp = f"{_BLOCK}/{PARTS[1]}", f"{_BLOCK}/{PARTS[3]}"
    sizes = {
        "vocab_size": vote(tower, ("Embed_0/embedding", 0)),
        "context_length": vote(tower, ("pos_embedding", 1)),
        "num_heads": vote(tower, *((f"{attention}/{name}/kernel", 1) for name in ("query", "key", "value"))),
        "output_dim": vote(tower, ("head/kernel", 1), ("head/bias", 0)) or 0,
    }
    hidden = vote(tower, (f"{mlp}/Dense_0/kernel", 1), (f"{mlp}/Dense_1/kernel", 0))
    fixed = {"activation": "gelu_tanh", "norm_eps": 1e-6, "causal": False, "proj_bias": True}
    return {
        "depth": depth,
        "embed_dim": width,
        "logit_bias": "b" in shapes,
        **fixed,
        **{name: size for name, size in sizes.items() if size is not None},
        **({} if hidden is None else {"mlp_ratio": ratio_for(hidden, width)}),
        **({"pool": "map"} if any_match(tower, "MAPHead_0/probe") else {}),
    }


def _layout(image: Layout) -> Layout:
    def own(names: Collection[str]) -> Collection[str]:
        taken = {name.removeprefix(_IMAGE): name for name in names if name.startswith(_IMAGE)}
        return {short: names[name] for short, name in taken.items()} if isinstance(names, Mapping) else taken

    tower = dataclasses.replace(
        image, prefixes=(_IMAGE,), evidence=lambda names: image.evidence(own(names)), belongs=None
    )
    half = TextHalf(
        evidence=lambda names: next((name for name in names if name == f"{_TEXT}Embed_0/embedding"), None),
        infer=_infer,
        rules=_rules,
        required=("pool",),
        fixed={
            "activation": ("gelu_tanh", "gelu"), "norm_eps": (1e-6,), "causal": (False,), "pool": _POOLS,
            "init_values": (None,), "proj_bias": (True,),
        },
        outside=(_TEXT, "t", "b"),  # as no name of the image tower begins
        hint="; the model's config in big_vision tells it: text_pool as pool_type, 'last' where it says none",
        conditions=lambda config: ["text_output_dim=0 (it has a projection)"] * (not config.text.output_dim),
    )  # fmt: skip
    stacks = tuple(f"{_TEXT}{_ENCODER}/encoderblock" for _ in image.stack)
    both = with_text(tower, half, (), image.name + SUFFIX, f"{image.description}, and texts")
    return dataclasses.replace(both, stack=(*image.stack, *stacks))


BIG_VISION_TEXT_LAYOUTS: tuple[Layout, ...] = tuple(
    map(_layout, (BIG_VISION, BIG_VISION_SCAN, BIG_VISION_NAFLEX, BIG_VISION_NAFLEX_SCAN))
)
