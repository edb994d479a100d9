"""The shared parts of Hugging Face layouts: names of blocks, activations, attributes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vit_flax.config import PlainViTConfig, ViTConfig, ViTFamily
from vit_flax.convert.config_files import ACTIVATIONS, activation
from vit_flax.convert.layout import Shapes, any_match, count_blocks, only, ratio_for, vote
from vit_flax.convert.rules import IDENTITY, ConversionError, Drop, Operation, Rule
from vit_flax.convert.timm_blocks import joined, linear, norm


@dataclasses.dataclass(frozen=True)
class Names:
    """How one spelling names the layers of a block."""

    block: str
    norm1: str
    norm2: str
    query: str
    key: str
    value: str
    out: str
    fc1: str
    fc2: str


# As files have them, since transformers 4; and as transformers 5 has them in memory.
VIT = Names(
    "encoder.layer.{i}", "layernorm_before", "layernorm_after", "attention.attention.query",
    "attention.attention.key", "attention.attention.value", "attention.output.dense", "intermediate.dense",
    "output.dense",
)  # fmt: skip
VIT_MEMORY = Names(
    "layers.{i}", "layernorm_before", "layernorm_after", "attention.q_proj", "attention.k_proj", "attention.v_proj",
    "attention.o_proj", "mlp.fc1", "mlp.fc2",
)  # fmt: skip
DINOV2 = dataclasses.replace(VIT, norm1="norm1", norm2="norm2", fc1="mlp.fc1", fc2="mlp.fc2")
DINOV2_MEMORY = dataclasses.replace(VIT_MEMORY, block=VIT.block, norm1="norm1", norm2="norm2")
CLIP = Names(
    "encoder.layers.{i}", "layer_norm1", "layer_norm2", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
    "self_attn.out_proj", "mlp.fc1", "mlp.fc2",
)  # fmt: skip

DINOV3 = Names(
    "layer.{i}", "norm1", "norm2", "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj",
    "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
DINOV3_MEMORY = dataclasses.replace(DINOV3, block="model.layer.{i}")


def mask_rule(config: ViTConfig, operation: Operation = IDENTITY) -> Rule | Drop:
    """Returns the rule of the mask token, which a config may leave out: evaluation does not read it."""
    name = "embeddings.mask_token"
    if config.mask_token:
        return Rule(name, "mask_token", operation)
    return Drop(name, "stands for masked patches in training, and the config says mask_token=False")


def block_rules(names: Names) -> tuple[Rule, ...]:
    """Returns the rules of the blocks."""
    source, target = names.block, "blocks_{i}"
    qkv = tuple(f"{source}.{part}" for part in (names.query, names.key, names.value))
    return (
        *norm(f"{source}.{names.norm1}", f"{target}/norm1"),
        *joined(qkv, f"{target}/attn/qkv", (1, 1, 1)),
        *linear(f"{source}.{names.out}", f"{target}/attn/proj"),
        *norm(f"{source}.{names.norm2}", f"{target}/norm2"),
        *linear(f"{source}.{names.fc1}", f"{target}/mlp/fc1"),
        *linear(f"{source}.{names.fc2}", f"{target}/mlp/fc2"),
    )


def block_components(names: Names, prefix: str) -> tuple[tuple[str, str], ...]:
    """Returns the pairs of modules of the blocks, and what goes into the first."""
    source = prefix + names.block
    pairs = (
        (names.norm1, "norm1"), (f"{names.out}:input", "attn/proj:input"), (names.out, "attn/proj"),
        (f"{names.norm2}:input", "norm2:input"), (names.norm2, "norm2"), (names.fc1, "mlp/fc1"),
        (f"{names.fc2}:input", "mlp/fc2:input"), (names.fc2, "mlp/fc2"),
    )  # fmt: skip
    return (
        (f"{source.format(i=0)}:input", "blocks_0:input"),
        *((f"{source}.{a}", f"blocks_{{i}}/{b}") for a, b in pairs),
        (source, "blocks_{i}"),
    )


def block_infer(shapes: Shapes, names: Names) -> dict[str, Any]:
    """Returns what the blocks' tensors tell."""
    depth = count_blocks(shapes, f"{names.block}.{names.norm1}.weight")
    dim = vote(shapes, (f"{names.block}.{names.norm1}.weight", 0), (f"{names.block}.{names.norm2}.weight", 0))
    if depth is None or dim is None:
        raise ConversionError(f"no tensors named {names.block.format(i=0)}.{names.norm1}: there is no block to read")
    hidden = vote(shapes, (f"{names.block}.{names.fc2}.weight", 1), (f"{names.block}.{names.fc1}.bias", 0))
    return {
        "depth": depth,
        "embed_dim": dim,
        "qkv_bias": any_match(shapes, f"{names.block}.{names.query}.bias"),
        **({} if hidden is None else {"mlp_ratio": ratio_for(hidden, dim)}),
    }


def patch_infer(shapes: Shapes, kernel: str) -> dict[str, object]:
    """Returns what the patch embedding's kernel tells."""
    shape = shapes.get(kernel, ())
    return {"in_chans": shape[1], "patch_size": tuple(shape[2:])} if len(shape) == 4 else {}


def ending(*needles: str) -> Callable[[Collection[str]], str | None]:
    """Returns the evidence of names: for every needle a name that is it, or has it after the name of an outer module.

    A needle that ends in a dot stands for every name of that module.
    """

    def evidence(names: Collection[str]) -> str | None:
        hits = []
        for needle in needles:
            inside = needle.endswith(".")
            hits.append(
                next(
                    (n for n in names if (f".{needle}" in f".{n}" if inside else f".{n}".endswith(f".{needle}"))), None
                )
            )
        return " and ".join(str(hit) for hit in hits) if all(hits) else None

    return evidence


def read_sizes(attributes: Mapping[str, object]) -> dict[str, object]:
    """Returns the fields of image_size and patch_size; pixels beyond the last whole patch are left out."""
    values: Mapping[str, Any] = attributes
    image, patch = (_pair(values[name]) for name in ("image_size", "patch_size"))
    crop = any(pixels % side for pixels, side in zip(image, patch, strict=True) if side > 0)
    return {"image_size": image, "patch_size": patch, "crop_to_patches": crop}


def _pair(value: int | list[int]) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return height, width


def read_mlp(attributes: Mapping[str, object]) -> dict[str, object]:
    """Returns the fields of hidden_size, intermediate_size and hidden_act."""
    values: Mapping[str, Any] = attributes
    return {
        "mlp_ratio": ratio_for(values["intermediate_size"], values["hidden_size"]),
        "activation": activation(values["hidden_act"]),
    }


def write_sizes(config: ViTConfig) -> dict[str, object]:
    """Returns the attributes image_size and patch_size."""
    sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
    return {name: h if h == w else [h, w] for name, (h, w) in sizes.items()}


def write_mlp(config: ViTConfig) -> dict[str, object]:
    """Returns the attributes intermediate_size and hidden_act."""
    return {"intermediate_size": config.mlp_dim, "hidden_act": _written(config.activation)}


def _written(ours: str) -> str:
    return next(theirs for theirs, name in ACTIVATIONS.items() if name == ours)


def write_labels(config: ViTConfig) -> dict[str, object]:
    """Returns the attributes that count the classes."""
    if not config.num_classes:
        return {}
    labels = [f"LABEL_{i}" for i in range(config.num_classes)]
    return {
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
    }


def square(config: ViTConfig) -> list[str]:
    """Returns a line for each size that is not square."""
    sizes = {"image_size": config.image_size, "patch_size": config.patch_size}
    return [f"{name}={size} (it holds squares)" for name, size in sizes.items() if size[0] != size[1]]


def conditions(config: ViTConfig) -> list[str]:
    """Returns what no model of this library can be, beyond single fields."""
    lines = ["norm_eps=None (it holds a number)"] if config.norm_eps is None else []
    if config.num_classes and config.representation_size is not None:
        lines.append(f"representation_size={config.representation_size} with num_classes (it holds one of both)")
    if config.head_dist and not config.num_classes:
        lines.append("head_dist=True with num_classes=0")
    return lines


FIELDS = {
    "hidden_size": "embed_dim",
    "num_hidden_layers": "depth",
    "num_attention_heads": "num_heads",
    "num_channels": "in_chans",
    "layer_norm_eps": "norm_eps",
}
SIZES = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3, "image_size": 224}


def fixed(
    *more: str, config_class: ViTFamily = PlainViTConfig, **values: tuple[object, ...]
) -> dict[str, tuple[object, ...]]:
    """Returns `Layout.fixed`: every field but the sizes and `more` is at its default, or one of `values`."""
    free = (
        *more,
        "image_size", "patch_size", "crop_to_patches", "in_chans", "num_classes", "embed_dim", "depth", "num_heads",
        "mlp_ratio", "norm_eps",
    )  # fmt: skip
    defaults = {"qkv_bias": (False, True), "qk_scale": (None, 0), "activation": tuple(ACTIVATIONS.values())}
    return only(config_class, free, **{**defaults, **values})


REQUIRED = (("num_heads", "image_size", "norm_eps", "activation"),)
HINT = "; the attributes of the model's config.json tell them: put it beside the weights, or load its folder"

CLASSIFIER = (("classifier", "classifier"),)  # Layout.heads

# Attributes that evaluation does not read, beside those of every model.
HARMLESS = ("dropout", "encoder_stride", "use_return_dict")


def write(config: ViTConfig, fields: Mapping[str, str] = FIELDS) -> dict[str, object]:
    """Returns the attributes that are fields by another name."""
    return {name: getattr(config, field) for name, field in fields.items()}


def read(attributes: Mapping[str, object], fields: Mapping[str, str] = FIELDS) -> dict[str, object]:
    """Returns the fields that are attributes by another name."""
    return {field: attributes[name] for name, field in fields.items()}
