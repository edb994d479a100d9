"""Layouts of SAM 2's image encoder: timm's HieraDet, and Meta's in checkpoints of all of SAM 2."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from vit_flax.config import HieraViTConfig, ViTConfig
from vit_flax.convert.facebook import respell
from vit_flax.convert.layout import Layout, Shapes, any_match, count_blocks, only, ratio_for, vote
from vit_flax.convert.rules import CONV, ConversionError, Operation, Rule
from vit_flax.convert.timm_blocks import block_components, block_rules, linear, norm

STAGED = (
    "image_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "norm_eps", "patch_kernel",
    "patch_stride", "patch_padding", "pos_embed_grid", "stages", "stage_dims", "stage_heads", "window_sizes",
    "global_attn_indexes", "query_pools", "query_stride",
)  # fmt: skip
PYRAMID = ("neck_chans", "pyramid_top_down", "pyramid_levels")
# fields of windows, heads and patches that tensors do not determine
REQUIRED = (("stage_heads", "window_sizes", "global_attn_indexes", "image_size", "patch_stride", "patch_padding"),)
_HINT = (
    ": `config='facebook/sam2.1-hiera-tiny'` tells them of Meta's tiny (as -small, -base-plus, -large of the others), "
    "`config='sam2_hiera_tiny'` of timm's"
)
_ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu")


def window_table(rows: int) -> Operation:
    """Returns the operation from a position table (1, D, H, W) to one by patch (1, H W, D), given H."""

    def back(array: Any) -> tuple[Any]:
        return (array.reshape(1, rows, -1, array.shape[-1]).transpose(0, 3, 1, 2),)

    def forward(array: Any) -> Any:
        if array.ndim != 4:
            raise ValueError(f"{array.ndim} axes instead of 4")
        return array.reshape(1, array.shape[1], -1).swapaxes(1, 2)

    return Operation("(1, D, H, W) -> (1, H W, D)", forward, back)


def stem_rules(config: ViTConfig, projection: str) -> tuple[Rule, ...]:
    """Returns the rules of both position tables, and of the patch embedding."""
    grid, windows = config.pos_embed_grid or config.grid_size, config.window_sizes
    return (
        Rule("pos_embed", "pos_embed", window_table(grid[0])),
        Rule("pos_embed_window", "pos_embed_window", window_table(windows[0])),
        Rule(f"{projection}.weight", "patch_embed/proj/kernel", CONV),
        Rule(f"{projection}.bias", "patch_embed/proj/bias"),
    )


def pyramid_rules(config: ViTConfig, convolution: str) -> tuple[Rule, ...]:
    """Returns the rules of the neck, whose convolutions are numbered from the last stage in files."""
    if config.neck_chans is None:
        return ()
    rules = []
    for stage, number in enumerate(reversed(range(len(config.stages)))):
        source, target = convolution.format(i=number), f"neck/convs_{stage}"
        rules += [Rule(f"{source}.weight", f"{target}/kernel", CONV), Rule(f"{source}.bias", f"{target}/bias")]
    return tuple(rules)


def infer_stages(shapes: Shapes) -> dict[str, object]:
    """Returns the fields of stages, tokens and positions that timm's names determine.

    A stage begins where a block projects its tokens, or is of another width than the one before.

    Raises:
        ConversionError: there is no block.
    """
    depth = count_blocks(shapes, "blocks.{i}.norm1.weight")
    if depth is None:
        raise ConversionError("no tensors named blocks.0.norm1: there is no block to read")
    leaves = [[f"blocks.{i}.{n}" for n in ("norm2.weight", "norm2.bias", "attn.proj.bias")] for i in range(depth)]
    widths = [_most(shapes[name][0] for name in names if len(shapes.get(name, ())) == 1) for names in leaves]
    widths = [width if width else next((w for w in widths[i:] if w), 0) for i, width in enumerate(widths)]
    starts = [i for i in range(1, depth) if f"blocks.{i}.proj.weight" in shapes or widths[i] != widths[i - 1]]
    bounds = [0, *starts, depth]
    dims = tuple(_most(widths[a:b]) for a, b in itertools.pairwise(bounds))
    hidden = vote(shapes, *((f"blocks.{i}.mlp.fc2.weight", 1) for i in range(bounds[1])))
    values: dict[str, Any] = {
        "depth": depth,
        "embed_dim": dims[0],
        "stages": tuple(b - a for a, b in itertools.pairwise(bounds)),
        "stage_dims": dims,
        "qkv_bias": any_match(shapes, "blocks.{i}.attn.qkv.bias"),
        **({"mlp_ratio": ratio_for(hidden, dims[0])} if hidden else {}),
    }
    kernel, table = shapes.get("patch_embed.proj.weight", ()), shapes.get("pos_embed", ())
    if len(kernel) == 4:
        values |= {"in_chans": kernel[1], "patch_kernel": tuple(kernel[2:])}
        if tuple(kernel[2:]) == (7, 7):  # Hiera's
            values |= {"patch_stride": (4, 4), "patch_padding": (3, 3)}
    if len(table) == 4:
        values["pos_embed_grid"] = tuple(table[2:])
    return values


def _most(widths: Any) -> int:
    return next((width for width, _ in Counter(widths).most_common(1)), 0)


def staged_defaults(values: Mapping[str, object]) -> dict[str, object]:
    """Returns what follows from the stages, and of stages what all published models have."""
    given: Any = values
    last = len(given["stages"]) - 1
    return {
        "num_heads": given["stage_heads"][0],
        "query_pools": min(3, last),
        "query_stride": (2, 2),
        "pyramid_top_down": tuple(level for level in (2, 3) if level <= last),
        "pyramid_levels": min(3, last + 1),
        "norm_eps": 1e-6,
        "activation": "gelu",
    }


def _implied(fields: Mapping[str, object]) -> dict[str, object]:
    """Returns what timm's constructor makes of stages, and of the first one's width and heads."""
    given: Any = fields
    doubled = [2**stage for stage in range(len(given["stages"]))]
    return {
        "depth": sum(given["stages"]),
        "stage_dims": tuple(given["embed_dim"] * n for n in doubled),
        "stage_heads": tuple(given["num_heads"] * n for n in doubled),
    }


def _rules(config: ViTConfig) -> tuple[Rule, ...]:
    return (
        *stem_rules(config, "patch_embed.proj"),
        *block_rules(config),
        *linear("blocks.{i}.proj", "blocks_{i}/proj"),
        *norm("head.norm", "fc_norm"),
        *linear("head.fc", "head"),
    )


def _infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    if any_match(shapes, "head.pre_logits.{rest}"):
        raise ConversionError("layout 'timm_sam2': has head.pre_logits, a layer before the classifier: it is not read")
    has_norm = "head.norm.weight" in shapes
    return {
        **infer_stages(shapes),
        "num_classes": vote(shapes, ("head.fc.weight", 0), ("head.fc.bias", 0)) or 0,
        "final_norm": has_norm,
        "fc_norm": has_norm,
        **({"init_values": 1e-5} if any_match(shapes, "blocks.{i}.ls1.gamma") else {}),
    }


def _evidence(names: Collection[str]) -> str | None:
    told = ("pos_embed_window", "blocks.0.mlp.fc1.weight")
    return " and ".join(told) if all(name in names for name in told) else None


def block_pairs(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    """Returns the pairs of modules of the blocks under timm's names, and the first block's input."""
    # the output of attention is partitioned into windows there, and not here
    pairs = (pair for pair in block_components(config) if pair[0] != "blocks.{i}.attn")
    more = ("norm2:input", "attn.proj:input")
    inner = tuple((f"blocks.{{i}}.{part}", f"blocks_{{i}}/{part.replace('.', '/')}") for part in more)
    wider = (i for i in range(config.depth) if config.dim_before(i) != config.dim_before(i + 1))
    shortcuts = tuple((f"blocks.{i}.proj", f"blocks_{i}/proj") for i in wider)
    return (("blocks.0:input", "blocks_0:input"), *inner, *shortcuts, *pairs)


def _components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    head = (("head.norm", "fc_norm"), ("head.fc", "head"))
    has = (config.fc_norm, config.num_classes > 0)
    return (*block_pairs(config), *(pair for pair, there in zip(head, has, strict=True) if there))


def _conditions(config: ViTConfig) -> list[str]:
    return [f"fc_norm={config.fc_norm} (its norm is after the pooling)"] * (config.fc_norm != config.final_norm)


TIMM_SAM2 = Layout(
    name="timm_sam2",
    description="timm's HieraDet, the trunk of SAM 2's image encoder",
    config_class=HieraViTConfig,
    evidence=_evidence,
    infer=_infer,
    rules=_rules,
    required=REQUIRED,
    defaults=lambda values: {**staged_defaults(values), "global_pool": "avg"},
    fixed=only(
        HieraViTConfig, (*STAGED, "num_classes", "init_values", "pyramid_top_down", "pyramid_levels"),
        qk_scale=(None, 0), final_norm=(True, False), fc_norm=(True, False), activation=_ACTIVATIONS,
        global_pool=("avg", "max", "avgmax", "none"),
    ),
    components=_components,
    conditions=_conditions,
    hint=_HINT,
    heads=(("head.fc", "head.fc"),),  # which stands beside a norm
    arguments={
        "stages": "stages", "window_sizes": "window_spec", "global_attn_indexes": "global_att_blocks",
        "query_pools": "q_pool", "query_stride": "q_stride", "pos_embed_grid": "global_pos_size",
        "patch_kernel": "patch_kernel", "patch_stride": "patch_stride", "patch_padding": "patch_padding",
        "image_size": "", "mlp_ratio": "",
    },
    implied=_implied,
)  # fmt: skip

_TRUNK = "trunk."  # Meta's: the neck is beside it
_SPELLINGS = ((".mlp.fc1.", ".mlp.layers.0."), (".mlp.fc2.", ".mlp.layers.1."))  # timm's, and Meta's
_TIMMS = tuple((theirs, timms) for timms, theirs in _SPELLINGS)


def _meta_name(name: str) -> str:
    return _TRUNK + respell(f"{name}.", *_SPELLINGS)[:-1]


def _meta_rules(config: ViTConfig) -> tuple[Rule, ...]:
    trunk = (rule for rule in _rules(config) if not str(rule.source).startswith("head."))
    trunk = (dataclasses.replace(rule, source=_meta_name(str(rule.source))) for rule in trunk)
    return (*trunk, *pyramid_rules(config, "neck.convs.{i}.conv"))


def _meta_infer(shapes: Shapes, known: Mapping[str, Any]) -> dict[str, Any]:
    today = {respell(n, *_TIMMS).removeprefix(_TRUNK): shape for n, shape in shapes.items()}
    neck = vote(shapes, ("neck.convs.{i}.conv.weight", 0), ("neck.convs.{i}.conv.bias", 0))
    return {**infer_stages(today), "neck_chans": neck, "num_classes": 0}


def _meta_evidence(names: Collection[str]) -> str | None:
    for prefix in ("image_encoder.", ""):
        told = (f"{prefix}{_TRUNK}pos_embed_window", f"{prefix}{_TRUNK}blocks.0.mlp.layers.0.weight")
        if all(name in names for name in told):
            return " and ".join(told)
    return None


SEGMENT_ANYTHING_2 = Layout(
    name="segment_anything_2",
    description="Meta's SAM 2 and 2.1: the image encoder",
    config_class=HieraViTConfig,
    evidence=_meta_evidence,
    infer=_meta_infer,
    rules=_meta_rules,
    required=REQUIRED,
    defaults=lambda values: {**staged_defaults(values), "global_pool": "none"},
    fixed=only(
        HieraViTConfig, (*STAGED, *PYRAMID), qk_scale=(None, 0), num_classes=(0,), global_pool=("none",),
        activation=("gelu",),
    ),
    components=lambda config: tuple((f"image_encoder.{_meta_name(a)}", b) for a, b in block_pairs(config)),
    hint=_HINT,
    prefixes=("image_encoder.",),
    prefix=lambda config: "image_encoder.",
)  # fmt: skip
