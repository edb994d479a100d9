"""Hugging Face's data2vec for images: BEiT, with the names of its files in memory as well.

Its models without a classifier pool nothing and, where a classifier would take the mean, do not normalise their tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vit_flax.config import ViTConfig
from vit_flax.convert import huggingface as hf
from vit_flax.convert.config_files import Family
from vit_flax.convert.huggingface_beit import BEIT_FAMILIES, BEIT_LAYOUTS
from vit_flax.convert.layout import Layout

_BEIT = BEIT_LAYOUTS[0]


def _prefix(config: ViTConfig) -> str:
    return "data2vec_vision." if config.num_classes else ""


def _conditions(config: ViTConfig) -> list[str]:
    lines = _BEIT.conditions(config)
    if config.fc_norm and not config.num_classes:
        lines.append("fc_norm=True with num_classes=0 (without a classifier nothing is pooled)")
    if config.final_norm != (config.global_pool != "none") or (config.num_classes and not config.final_norm):
        lines.append(
            f"final_norm={config.final_norm} with global_pool={config.global_pool!r} and "
            f"num_classes={config.num_classes} (its tokens are normalised unless nothing is pooled)"
        )
    return lines


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    prefix = _prefix(config)
    last = {"avg": ("pooler.layernorm", "fc_norm"), "token": ("layernorm", "norm")}.get(config.global_pool)
    return (
        *((f"{prefix}{hf.VIT.block}.{a}", f"blocks_{{i}}/{b}") for a, b in (
            (hf.VIT.norm1, "norm1"), (hf.VIT.out, "attn/proj"), (hf.VIT.norm2, "norm2"), (hf.VIT.fc1, "mlp/fc1"),
            (f"{hf.VIT.fc2}:input", "mlp/fc2:input"), (hf.VIT.fc2, "mlp/fc2"),
        )),
        (f"{prefix}{hf.VIT.block}", "blocks_{i}"),
        *([(f"{prefix}{last[0]}", last[1])] if last else []),
        *([("classifier:input", "head:input"), ("classifier", "head")] if config.num_classes else []),
    )  # fmt: skip


def _write(config: ViTConfig) -> dict[str, Any]:
    head = "ForImageClassification" if config.num_classes else "Model"
    mean = config.fc_norm or not config.final_norm
    assert _BEIT.config_file is not None
    return {
        **_BEIT.config_file(config),
        "architectures": [f"Data2VecVision{head}"],
        "model_type": "data2vec-vision",
        "use_mean_pooling": mean,
    }


DATA2VEC = dataclasses.replace(
    _BEIT,
    name="huggingface_data2vec",
    description="Hugging Face's data2vec for images",
    # without this outer name the tensors are BEiT's
    evidence=hf.ending(f"data2vec_vision.{hf.VIT.block.format(i=0)}.{hf.VIT.norm1}.weight"),
    fixed={**_BEIT.fixed, "final_norm": (True, False), "global_pool": ("token", "avg", "none")},
    components=_components,
    conditions=_conditions,
    prefixes=("data2vec_vision.",),
    prefix=_prefix,
    config_file=_write,
)

DATA2VEC_LAYOUTS: tuple[Layout, ...] = (DATA2VEC,)
DATA2VEC_FAMILIES: dict[str, Family] = {
    "data2vec-vision": dataclasses.replace(BEIT_FAMILIES["beit"], layout=DATA2VEC.name),
}
