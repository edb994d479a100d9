"""The layers that a pattern selects, and the message where it selects none."""

import re

import pytest

from vit_flax.lora.config import LoraConfig
from vit_flax.lora.places import choose

SHAPES = {
    "cls_token": (1, 1, 4), "patch_embed/proj/kernel": (2, 2, 3, 4), "patch_embed/proj/bias": (4,),
    "blocks_0/norm1/scale": (4,), "blocks_0/norm1/bias": (4,),
    "blocks_0/attn/qkv/kernel": (4, 12), "blocks_0/attn/qkv/bias": (12,),
    "blocks_0/attn/proj/kernel": (4, 4), "blocks_0/attn/proj/bias": (4,),
    "blocks_0/mlp/fc1/kernel": (4, 16), "blocks_0/mlp/fc2/kernel": (8, 4),
    "blocks_1/mlp/fc1/kernel": (4, 16), "blocks_1/mlp/fc2/kernel": (16, 4),
    "head/kernel": (4, 3), "head/bias": (3,),
}  # fmt: skip
HEAD = frozenset({"head/kernel", "head/bias"})


def names(**fields: object) -> list[str]:
    return [place.name for place in choose(LoraConfig(**fields), SHAPES).places]  # pyright: ignore[reportArgumentType]


def test_layers_and_parts_of_fused_ones() -> None:
    chosen = choose(LoraConfig(), SHAPES)
    assert [(place.name, place.start, place.stop) for place in chosen.places] == [
        ("blocks_0/attn/q", 0, 4), ("blocks_0/attn/v", 8, 12),
    ]  # fmt: skip
    assert chosen.whole == HEAD
    assert names(targets="proj") == ["blocks_0/attn/proj", "patch_embed/proj"]
    assert names(targets="attn/proj") == ["blocks_0/attn/proj"]
    assert names(targets=r"blocks_\d+/attn/.*") == ["blocks_0/attn/proj", "blocks_0/attn/qkv"]  # the whole, no parts
    assert names(targets=["kv", "q"]) == ["blocks_0/attn/kv", "blocks_0/attn/q"]
    assert names(targets="gate,value") == ["blocks_0/mlp/gate", "blocks_0/mlp/value"]  # the other fc1 is not gated
    assert names(targets="fc1", exclude="blocks_1/.*") == ["blocks_0/mlp/fc1"]
    linear = names(targets="all-linear")
    assert len(linear) == 6
    assert not {"head", "patch_embed/proj"} & set(linear)
    assert names(targets=r"blocks_[0,1]{1,2}/mlp/fc2") == ["blocks_0/mlp/fc2", "blocks_1/mlp/fc2"]


def test_biases_and_whole_modules() -> None:
    chosen = choose(LoraConfig(bias="lora_only", targets="q,proj,fc2"), SHAPES)
    assert [place.name for place in chosen.biases] == ["blocks_0/attn/proj", "blocks_0/attn/q", "patch_embed/proj"]
    every = choose(LoraConfig(bias="all", modules_to_save=()), SHAPES)
    assert every.whole == {path for path in SHAPES if path.endswith("bias")}
    norm = choose(LoraConfig(modules_to_save=("norm1", "head")), SHAPES)
    assert norm.whole == HEAD | {"blocks_0/norm1/scale", "blocks_0/norm1/bias"}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"targets": "q_proj"}, "lora.targets: 'q_proj' matches no layer of this model; did you mean 'q'?"),
        ({"targets": "query"}, "did you mean 'q'?"),
        ({"targets": "fc3"}, "did you mean 'fc2' or 'fc1'?"),
        ({"targets": "attn/qvk"}, "did you mean 'attn/qkv'"),
        ({"targets": "q,zzz"}, "'zzz' matches no layer of this model; layers are patch_embed/proj, attn/qkv, "),
        ({"targets": "("}, "is no regular expression"),
        ({"targets": ""}, "names no layer"),
        ({"exclude": "mlp/fcc"}, "lora.exclude: 'mlp/fcc' matches no layer"),
        ({"targets": "q", "exclude": "q"}, "lora.exclude leaves none"),
        ({"targets": ".*"}, "head is in lora.targets and in lora.modules_to_save; lora.exclude=head settles it"),
        ({"modules_to_save": "classifier"}, "did you mean 'head'?"),
        ({"ranks": (("fc1", 2),)}, "lora.ranks: 'fc1' matches no layer"),
        ({"ranks": (("q", 0),)}, "lora.rank must be an integer of at least 1"),
        ({"rank": 0}, "lora.rank must be an integer of at least 1"),
        ({"alpha": "8"}, "lora.alpha must be a number"),
        ({"dropout": 1.0}, "lora.dropout must be less than 1"),
        ({"bias": "some"}, "lora.bias must be one of none, all, lora_only"),
        ({"targets": 3}, "lora.targets must be patterns"),
        ({"alphas": "q"}, "lora.alphas must be (pattern, value) pairs"),
    ],
)
def test_what_matches_nothing_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        names(**fields)


def test_the_advice_is_right() -> None:
    assert "head" not in names(targets=".*", exclude="head")
