"""open_clip's and OpenAI's two-tower models.

`open_clip_with_text` is open_clip's class CLIP, and OpenAI's, whose text tower lies beside `visual`;
`open_clip_with_custom_text` its CustomTextCLIP, where it is `text`. Each has open_clip's own image tower or
one of timm.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import TwoTowersConfig
from vit_flax.convert.foreign import foreign_text
from vit_flax.convert.layout import Layout, Shapes, any_match, count_blocks, ratio_for, vote
from vit_flax.convert.open_clip import (
    ARCHIVE,
    HEAD_WIDTH,
    OPEN_CLIP,
    OPEN_CLIP_EVA,
    OPEN_CLIP_TIMM,
    block_rules,
    text_tower,
)
from vit_flax.convert.rules import IDENTITY, UNBATCHED, ConversionError, Drop, Rule
from vit_flax.convert.timm_blocks import linear, norm
from vit_flax.convert.two_towers import SUFFIX, TextHalf, moved, with_text

_BLOCK = "transformer.resblocks.{i}"
_CUSTOM = "text."


def _half(prefix: str) -> TextHalf:
    """Returns the text tower whose names have `prefix` before them."""

    def rules(config: TwoTowersConfig) -> tuple[Rule | Drop, ...]:
        has_bias = config.text.proj_bias
        projection = linear("text_projection", "head") if has_bias else (Rule("text_projection", "head/kernel"),)
        tower = (
            Rule("token_embedding.weight", "token_embed"),
            Rule("positional_embedding", "pos_embed", UNBATCHED),
            *block_rules(_BLOCK),
            *norm("ln_final", "norm"),
            *projection,
        )
        return (
            *moved(tower, prefix, "text/"),
            Rule("logit_scale", "logit_scale", IDENTITY),
            Rule("logit_bias", "logit_bias", IDENTITY),
            Drop(f"{prefix}attn_mask", "a constant of the text tower"),
            *(Drop(name, "a number that OpenAI's archives hold") for name in ARCHIVE),
        )

    def infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
        tower = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        if "cls_emb" in tower:
            raise ConversionError(
                f"{foreign_text(shapes)}, which is not read (`tower='image'` reads the image tower alone)"
            )
        depth = count_blocks(tower, f"{_BLOCK}.{{a}}.{{b}}")
        width = vote(tower, ("token_embedding.weight", 1), ("positional_embedding", 1), ("ln_final.weight", 0))
        if depth is None or width is None:
            raise ConversionError(f"no tensors named {prefix}transformer.resblocks.0...: there is no text tower")
        # a projection without bias is the matrix that texts are multiplied by, and lies the other way round
        output = vote(tower, ("text_projection.weight", 0)) or vote(tower, ("text_projection", 1)) or 0
        values = {
            "depth": depth,
            "embed_dim": width,
            "output_dim": output,
            "proj_bias": any_match(tower, "text_projection.bias"),
            "init_values": 1e-5 if any_match(tower, f"{_BLOCK}.ls_{{n}}.gamma") else None,
            "logit_bias": any_match(shapes, "logit_bias"),
        }
        sizes = {
            "vocab_size": vote(tower, ("token_embedding.weight", 0)),
            "context_length": vote(tower, ("positional_embedding", 0)),
        }
        values |= {name: size for name, size in sizes.items() if size}
        hidden = vote(tower, (f"{_BLOCK}.mlp.c_fc.weight", 0), (f"{_BLOCK}.mlp.c_proj.weight", 1))
        values |= {} if hidden is None else {"mlp_ratio": ratio_for(hidden, width)}
        if any_match(shapes, *ARCHIVE):
            heads = {"num_heads": width // HEAD_WIDTH} if width % HEAD_WIDTH == 0 else {}
            values |= {"norm_eps": 1e-5, "activation": "quick_gelu", "causal": True, "pool": "argmax", **heads}
        return values

    def evidence(names: Collection[str]) -> str | None:
        name = f"{prefix}token_embedding.weight"
        return f"{name} and {prefix}ln_final.weight" if {name, f"{prefix}ln_final.weight"} <= set(names) else None

    return TextHalf(
        evidence=evidence,
        infer=infer,
        rules=rules,
        required=("num_heads", "activation", "norm_eps", "causal", "pool"),
        fixed={
            "activation": ("quick_gelu", "gelu", "gelu_tanh"), "pool": ("eos", "argmax", "last", "first"),
            **({} if prefix else {"proj_bias": (False,)}),
        },
        outside=(prefix,) if prefix else (),
        hint=(
            "; the model's JSON in open_clip tells them, text_cfg as well as vision_cfg: text_num_heads as heads, "
            "text_causal=False where it says no_causal_mask, text_pool as pool_type, else 'argmax'"
        ),
    )  # fmt: skip


def _layouts(image: Layout) -> tuple[Layout, ...]:
    kinds = (("", SUFFIX, "CLIP"), (_CUSTOM, "_with_custom_text", "CustomTextCLIP"))
    return tuple(
        with_text(
            image,
            _half(prefix),
            text_tower(),
            image.name + suffix,
            f"{image.description}, and texts ({kind})",
        )
        for prefix, suffix, kind in kinds
    )


OPEN_CLIP_TEXT_LAYOUTS: tuple[Layout, ...] = tuple(
    layout for image in (OPEN_CLIP_TIMM, OPEN_CLIP, OPEN_CLIP_EVA) for layout in _layouts(image)
)
