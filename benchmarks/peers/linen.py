"""A ViT as linen tutorials and big_vision write it: nn.Dense, nn.LayerNorm, nn.MultiHeadDotProductAttention.

Variants: '' unrolled layers, 'scan' nn.scan over them. `dtype` is set on every layer for bfloat16.
"""

from __future__ import annotations

import re
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import Job, Prepared
from benchmarks.peers.jax_runs import prepare_inference, prepare_train_step

SETTINGS = "stock flax.linen layers, jax.jit; bfloat16: dtype=bfloat16 on every layer, parameters float32"


class EncoderBlock(nn.Module):
    """Pre-norm attention and MLP."""

    heads: int
    hidden: int
    dtype: Any

    @nn.compact
    def __call__(self, x, _):
        """Returns the tokens, and nothing for scan to stack."""
        kept = {"dtype": self.dtype}
        y = nn.LayerNorm(epsilon=1e-6, name="norm1", **kept)(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, deterministic=True, name="attn", **kept)(y, y)
        y = nn.LayerNorm(epsilon=1e-6, name="norm2", **kept)(x)
        y = nn.gelu(nn.Dense(self.hidden, name="fc1", **kept)(y), approximate=False)
        return x + nn.Dense(x.shape[-1], name="fc2", **kept)(y), None


def embed(module: Any, images: Any) -> Any:
    """Returns the tokens of images, class token first, positions added; to be called in a compact method."""
    cfg, dtype = module.config, module.dtype
    x = nn.Conv(cfg.embed_dim, cfg.patch_size, cfg.patch_size, "VALID", dtype=dtype, name="embedding")(images)
    x = x.reshape(x.shape[0], -1, cfg.embed_dim)
    cls = module.param("cls", nn.initializers.zeros, (1, 1, cfg.embed_dim)).astype(x.dtype)
    x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], axis=1)
    return x + module.param("pos", nn.initializers.normal(0.02), (1, x.shape[1], cfg.embed_dim)).astype(x.dtype)


def encode(block: Any, x: Any, kept: tuple[Any, ...], depth: int, scan: bool) -> Any:
    """Returns the tokens after `depth` blocks, scanned or unrolled; to be called in a compact method."""
    if scan:
        axes: Any = nn.broadcast  # what the signature says is an int
        split: Any = {"params": True}
        stacked = nn.scan(block, {"params": 0}, split_rngs=split, in_axes=axes, length=depth)
        return stacked(*kept, name="blocks")(x, None)[0]
    for index in range(depth):
        x, _ = block(*kept, name=f"block_{index}")(x, None)
    return x


class PlainViT(nn.Module):
    """The ViT of the cases, class token and learned positions."""

    config: Any
    dtype: Any
    scan: bool

    @nn.compact
    def __call__(self, images):
        """Returns the logits."""
        cfg = self.config
        x = encode(EncoderBlock, embed(self, images), (cfg.num_heads, cfg.mlp_dim, self.dtype), cfg.depth, self.scan)
        x = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x)
        return nn.Dense(cfg.num_classes, dtype=self.dtype, name="head")(x[:, 0])


def convert(tensors: dict[str, np.ndarray], config: Any, scan: bool) -> dict[str, Any]:
    """Returns the parameters from timm's names."""
    width, heads = config.embed_dim, config.num_heads

    def norm(name: str) -> dict[str, Any]:
        return {"scale": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]}

    def dense(name: str) -> dict[str, Any]:
        return {"kernel": tensors[f"{name}.weight"].T, "bias": tensors[f"{name}.bias"]}

    def block(index: int) -> dict[str, Any]:
        at = f"blocks.{index}"
        qkv = tensors[f"{at}.attn.qkv.weight"].T.reshape(width, 3, heads, -1)
        bias = tensors[f"{at}.attn.qkv.bias"].reshape(3, heads, -1)
        proj = dense(f"{at}.attn.proj")
        attention = {
            name: {"kernel": qkv[:, part], "bias": bias[part]} for part, name in enumerate(("query", "key", "value"))
        }
        attention["out"] = {"kernel": proj["kernel"].reshape(heads, -1, width), "bias": proj["bias"]}
        parts = {"norm1": norm(f"{at}.norm1"), "attn": attention, "norm2": norm(f"{at}.norm2")}
        return {**parts, "fc1": dense(f"{at}.mlp.fc1"), "fc2": dense(f"{at}.mlp.fc2")}

    depth = 1 + max(int(found[1]) for name in tensors if (found := re.match(r"blocks\.(\d+)\.", name)))
    blocks = [block(index) for index in range(depth)]
    patch = {
        "kernel": tensors["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "bias": tensors["patch_embed.proj.bias"],
    }
    params = {"embedding": patch, "cls": tensors["cls_token"], "pos": tensors["pos_embed"]}
    params |= {"norm": norm("norm"), "head": dense("head")}
    if not scan:
        return params | {f"block_{index}": values for index, values in enumerate(blocks)}
    import jax

    return params | {"blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}


def prepare(job: Job) -> Prepared:
    """Builds the model from the weights and compiles it."""
    from safetensors.numpy import load_file

    scan = job.variant == "scan"
    dtype = jnp.bfloat16 if job.case.precision == "bfloat16" else None
    model = PlainViT(job.case.config, dtype, scan)
    params = convert(load_file(job.weights), job.case.config, scan)

    def apply(params, images):
        return model.apply({"params": params}, images)

    return (prepare_train_step if job.case.mode == "train_step" else prepare_inference)(job, apply, params)
