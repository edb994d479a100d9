"""The tables of timm's transformer blocks."""

from __future__ import annotations

import re

from vit_flax.config import ViTConfig
from vit_flax.convert.layout import Shapes, any_match
from vit_flax.convert.rules import DENSE, Rule, join, join_dense


def linear(source: str, target: str) -> tuple[Rule, Rule]:
    """Returns the two rules of a Linear."""
    return Rule(f"{source}.weight", f"{target}/kernel", DENSE), Rule(f"{source}.bias", f"{target}/bias")


def norm(source: str, target: str) -> tuple[Rule, Rule]:
    """Returns the two rules of a LayerNorm, the first of which an RMSNorm has too."""
    return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


def joined(sources: tuple[str, ...], target: str, shares: tuple[int, ...]) -> tuple[Rule, Rule]:
    """Returns the two rules of several Linears that are one in the model."""
    return (
        Rule(tuple(f"{source}.weight" for source in sources), f"{target}/kernel", join_dense(*shares)),
        Rule(tuple(f"{source}.bias" for source in sources), f"{target}/bias", join(*shares)),
    )


def block_rules(config: ViTConfig) -> tuple[Rule, ...]:
    """Returns the rules of the blocks."""
    source, target = "blocks.{i}", "blocks_{i}"
    if config.block == "parallel_things":
        return (
            *norm(f"{source}.{{branch}}.{{j}}.norm", f"{target}/{{branch}}_{{j}}/norm"),
            *_attention(f"{source}.attns.{{j}}.attn", f"{target}/attns_{{j}}/attn"),
            *_mlp(f"{source}.ffns.{{j}}.mlp", f"{target}/ffns_{{j}}/mlp", config.mlp_layer),
            Rule(f"{source}.{{branch}}.{{j}}.ls.gamma", f"{target}/{{branch}}_{{j}}/ls/gamma"),
        )
    if config.block in ("parallel_scaling", "diff_parallel_scaling"):
        diff = config.block == "diff_parallel_scaling"
        return (
            *norm(f"{source}.in_norm", f"{target}/in_norm"),
            *linear(f"{source}.in_proj", f"{target}/in_proj"),
            Rule(f"{source}.mlp_bias", f"{target}/mlp_bias"),
            *(_mixing(source, f"{target}/mixing") if diff else _norms(source, target, "q", "k")),
            *(linear(f"{source}.out_proj", f"{target}/out_proj") if diff else ()),
            *linear(f"{source}.{{part}}_out_proj", f"{target}/{{part}}_out_proj"),
            Rule(f"{source}.ls.gamma", f"{target}/ls/gamma"),
        )
    return (
        *norm(f"{source}.norm{{n}}", f"{target}/norm{{n}}"),
        *_attention(f"{source}.attn", f"{target}/attn", diff=config.block == "diff"),
        Rule(f"{source}.ls{{n}}.gamma", f"{target}/ls{{n}}/gamma"),
        *_mlp(f"{source}.mlp", f"{target}/mlp", config.mlp_layer),
    )


def _attention(source: str, target: str, diff: bool = False) -> tuple[Rule, ...]:
    return (
        *linear(f"{source}.qkv", f"{target}/qkv"),
        *(_mixing(source, f"{target}/mixing") if diff else _norms(source, target, "q", "k")),
        *norm(f"{source}.norm", f"{target}/norm"),
        *linear(f"{source}.proj", f"{target}/proj"),
    )


def _mixing(source: str, target: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{source}.lambda_{{part}}", f"{target}/lambda_{{part}}"),
        *_norms(source, target, "q", "k", "sub"),
    )


def _norms(source: str, target: str, *kinds: str) -> tuple[Rule, ...]:
    return tuple(rule for kind in kinds for rule in norm(f"{source}.{kind}_norm", f"{target}/{kind}_norm"))


def _mlp(source: str, target: str, mlp_layer: str) -> tuple[Rule, ...]:
    if mlp_layer == "swiglu":
        fc1 = joined((f"{source}.fc1_g", f"{source}.fc1_x"), f"{target}/fc1", (1, 1))
    else:
        fc1 = linear(f"{source}.fc1", f"{target}/fc1")
    return (*fc1, *linear(f"{source}.fc2", f"{target}/fc2"), *norm(f"{source}.norm", f"{target}/norm"))


# What the parts of other blocks are called in the standard one, as far as their shapes tell something.
_PARALLEL = (
    (r"\.in_norm\.", ".norm1."),
    (r"\.in_proj\.bias", ".attn.qkv.bias"),
    (r"^(blocks\.\d+)\.([qk]_norm)\.", r"\1.attn.\2."),
    (r"\.ls\.", ".ls1."),
)
_THINGS = (
    (r"\.attns\.\d+\.(norm|ls)\.", r".\g<1>1."),
    (r"\.ffns\.\d+\.(norm|ls)\.", r".\g<1>2."),
    (r"\.(attns|ffns)\.\d+\.", "."),
)


def block_components(config: ViTConfig) -> tuple[tuple[str, str], ...]:
    """Returns the pairs of modules inside a block, and the block itself."""
    if config.block == "parallel_things":
        parts = ["attns.{j}.norm", "attns.{j}.attn", "ffns.{j}.norm", "ffns.{j}.mlp"]
    elif "parallel_scaling" in config.block:
        parts = ["in_norm", "in_proj"]
    else:
        parts = ["norm1", "attn.qkv", "attn.proj", "attn", "norm2", "mlp.fc2:input", "mlp.fc2", "mlp"]
        parts += ["attn.proj:input", "norm2:input"] * (config.block == "standard")
        parts += ["mlp.fc1"] * (config.mlp_layer != "swiglu")
        parts += ["attn.q_norm", "attn.k_norm"] * (config.qk_norm and config.block != "diff")
        parts += ["attn.norm"] * config.scale_attn_norm
        parts += ["mlp.norm"] * config.scale_mlp_norm
        parts += ["ls1", "ls2"] * (config.init_values is not None)
    linen = [part.replace("s.{j}", "s_{j}").replace(".", "/") for part in parts]
    pairs = tuple((f"blocks.{{i}}.{a}", f"blocks_{{i}}/{b}") for a, b in zip(parts, linen, strict=True))
    return (*pairs, ("blocks.{i}", "blocks_{i}"))


def standard_names(shapes: Shapes) -> tuple[str, Shapes]:
    """Returns the kind of block, and the shapes under the names that the standard block has for such parts."""
    if any_match(shapes, "blocks.{i}.attns.{j}.norm.weight"):
        kind, names = "parallel_things", _THINGS
    elif any_match(shapes, "blocks.{i}.in_proj.weight"):
        diff = any_match(shapes, "blocks.{i}.lambda_q1")
        kind, names = "diff_parallel_scaling" if diff else "parallel_scaling", _PARALLEL
    else:
        kind, names = "diff" if any_match(shapes, "blocks.{i}.attn.lambda_q1") else "standard", ()
    for pattern, name in names:
        shapes = {re.sub(pattern, name, key): shape for key, shape in shapes.items()}
    return kind, shapes
