"""Deliberate errors, each of which the comparison must catch.

A mutation breaks the Flax model or the conversion as real ports have been broken. A comparison under a mutation must
disagree, and the first row that disagrees must be the one that the mutation changes: the proof that the comparison can
fail.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.module import wrap_method_once
from jax import lax
from jax.lax import PrecisionLike

from vit_flax import attention_weights
from vit_flax.attention_weights import attention_maps
from vit_flax.config import ViTConfig
from vit_flax.models import (
    activations,
    attention,
    linear,
    loop,
    norm,
    patch_embed,
    softmax_attention,
    vision_transformer,
)
from vit_flax.models.block import Block
from vit_flax.models.precision import Precision
from vit_flax.models.vision_transformer import VisionTransformer
from vit_flax.parity.steps import AdamW
from vit_flax.parity.wrong_tensors import Change, changed, exchanged, thirds_swapped
from vit_flax.suggestions import suggest


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One deliberate error, and the row that must disagree first."""

    name: str
    description: str
    section: str  # section of the report: components, intermediates, stressed, gradients or steps
    first: str  # first row that disagrees, torch's name without the prefix 'backbone.'
    config: Callable[[ViTConfig], dict[str, object]] | None = None  # changed fields of the config
    tensors: Change | None = None  # change of the tensors before the conversion
    patches: tuple[tuple[Any, str, Any], ...] = ()  # (object, attribute, wrong value)
    images: Callable[[np.ndarray], np.ndarray] | None = None  # wrong layout: (B, C, H, W) images to Flax's
    optimizer: AdamW | None = None
    decay_everything: bool = False

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Applies the patches within the context."""
        jax.clear_caches()  # programs traced without the patches, and afterwards those with them
        with contextlib.ExitStack() as stack:
            for target, attribute, value in self.patches:
                stack.enter_context(mock.patch.object(target, attribute, value))
            yield
        jax.clear_caches()


def _heads_outermost(weight: np.ndarray) -> np.ndarray:
    # reads (3, heads, head_dim) rows as if they were (heads, 3, head_dim)
    return np.ascontiguousarray(weight.reshape(3, 4, -1, weight.shape[1]).swapaxes(0, 1)).reshape(weight.shape)


def _transpose_patches(weight: np.ndarray) -> np.ndarray:
    side = int(weight.shape[1] ** 0.5)
    return weight.reshape(-1, side, side).swapaxes(1, 2).reshape(weight.shape)


def _fast_variance(x: Any, eps: float, statistics: Any = None) -> Any:
    mean = x.mean(-1, keepdims=True)
    rstd = lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) - jnp.square(mean) + eps)
    return (x - mean) * rstd, (mean, rstd)


def _encode(order: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def encode(self: VisionTransformer, tokens: Any, mask: None = None, spatial_shapes: None = None) -> Any:
        tokens = order(self, tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)

    return encode


def _class_tokens(model: VisionTransformer, tokens: Any) -> Any:
    return jnp.broadcast_to(model.cls_token, (tokens.shape[0], 1, tokens.shape[2]))


def _class_token_last(model: VisionTransformer, tokens: Any) -> Any:
    return jnp.concatenate([tokens, _class_tokens(model, tokens)], axis=1) + lax.stop_gradient(model.pos_embed)


def _class_token_without_position(model: VisionTransformer, tokens: Any) -> Any:
    tokens = tokens + lax.stop_gradient(model.pos_embed[:, 1:])
    return jnp.concatenate([_class_tokens(model, tokens), tokens], axis=1)


def _trained_positions(model: VisionTransformer, tokens: Any) -> Any:
    return jnp.concatenate([_class_tokens(model, tokens), tokens], axis=1) + model.pos_embed


def _as_call(function: Callable[..., Any]) -> Callable[..., Any]:
    function.__name__ = "__call__"  # the name that recorders look for
    return wrap_method_once(function)


@_as_call
def _no_residual(self: Block, x: Any, given: None = None) -> Any:
    x = self.attn(self.norm1(x))
    return x + self.mlp(self.norm2(x))


@_as_call
def _post_norm(self: Block, x: Any, given: None = None) -> Any:
    x = self.norm1(x + self.attn(x))
    return self.norm2(x + self.mlp(x))


def _softmax_over_queries(q: Any, k: Any, v: Any, scale: float, precision: Precision, bias: None = None) -> Any:
    logits = softmax_attention.heads_dot(q * scale, k, 3, 3, precision.products)
    return softmax_attention.heads_dot(jax.nn.softmax(logits, axis=-2), v, 3, 2, precision.products)


def _columns_first(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 2, 1)  # (B, C, H, W) -> (B, W, H, C)


@jax.custom_jvp
def _gelu_wrong_slope(x: Any) -> Any:
    return x * activations._normal_cdf(x)


@_gelu_wrong_slope.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return _gelu_wrong_slope(primals[0]), tangents[0] * activations._normal_cdf(primals[0])


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _layer_norm_scale_only(x: Any, scale: Any, bias: Any, eps: float, keep: bool) -> Any:
    return norm._layer_norm_forward(x, scale, bias, eps, keep)[0]


def _layer_norm_scale_only_backward(eps: float, keep: bool, residuals: Any, g: Any) -> Any:
    x, scale, *_ = residuals
    _, dscale, dbias = norm._layer_norm_backward(eps, keep, residuals, g)
    return norm._standardise(x, eps)[1][1] * g * scale, dscale, dbias


_layer_norm_scale_only.defvjp(norm._layer_norm_forward, _layer_norm_scale_only_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _attention_without_row(q: Any, k: Any, v: Any, scale: float, precision: Precision, bias: None = None) -> Any:
    return softmax_attention._late_forward(q, k, v, scale, precision.products)[0]


def _attention_without_row_forward(
    q: Any, k: Any, v: Any, scale: float, precision: Precision, bias: None = None
) -> Any:
    return softmax_attention._late_forward(q, k, v, scale, precision.products)


def _attention_without_row_backward(scale: float, precision: Precision, residuals: Any, g: Any) -> Any:
    *rest, out, bias = residuals
    return softmax_attention._late_backward(scale, precision.products, (*rest, jnp.zeros_like(out), bias), g)


_attention_without_row.defvjp(_attention_without_row_forward, _attention_without_row_backward)


def _matmul_without_kernel_gradient(x: Any, kernel: Any, dtype: Any, precision: PrecisionLike) -> Any:
    return linear.matmul(x, lax.stop_gradient(kernel), dtype, precision)


def _stored_linear_without_kernel_gradient(x: Any, kernel: Any, *others: Any) -> Any:
    return linear.stored_linear(x, lax.stop_gradient(kernel), *others)


_forward_intermediates = VisionTransformer.forward_intermediates


def _never_normed(self: VisionTransformer, images: Any, *asked: Any, **named: Any) -> Any:
    return _forward_intermediates(self, images, *asked, **{**named, "norm": False})


_never_normed.__name__ = "forward_intermediates"


def _one_block_early(model: Any, tokens: Any, inputs: Any, taken: tuple[int, ...] = ()) -> Any:
    out, found = loop.run_model(model, tokens, inputs, tuple(range(len(inputs))))
    return out, [[tokens, *found][index] for index in taken]


def _prefix_kept(patches: Any, config: ViTConfig, size: Any, grid: bool, return_prefix_tokens: bool) -> Any:
    del size, grid, return_prefix_tokens
    return patches, patches[:, : config.num_prefix_tokens]


def _heads_averaged(*arguments: Any) -> dict[int, np.ndarray]:
    maps = attention_maps(*arguments)
    return {number: np.broadcast_to(array.mean(1, keepdims=True), array.shape) for number, array in maps.items()}


_QKV = ".attn.qkv.weight"

MUTATIONS: dict[str, Mutation] = {
    m.name: m
    for m in (
        Mutation(
            "gelu_tanh",
            "tanh GELU, JAX's default, instead of exact GELU",
            "components",
            "blocks.0.neuralnet.act",
            config=lambda c: {"activation": "gelu_tanh"},
        ),
        Mutation(
            "quick_gelu",
            "quick GELU instead of exact GELU",
            "components",
            "blocks.0.neuralnet.act",
            config=lambda c: {"activation": "quick_gelu"},
        ),
        Mutation(
            "norm_eps",
            "LayerNorm epsilon 1e-6, Flax's default, instead of 1e-5",
            "components",
            "blocks.0.norm1",
            config=lambda c: {"norm_eps": 1e-6},
        ),
        Mutation(
            "no_value_skip",
            "attention without its value skip",
            "components",
            "blocks.0.attn",
            config=lambda c: {"value_skip": False},
        ),
        Mutation(
            "qk_scale",
            "attention scale embed_dim**-0.5 instead of head_dim**-0.5",
            "components",
            "blocks.0.attn.proj:input",
            config=lambda c: {"qk_scale": c.embed_dim**-0.5},
        ),
        Mutation(
            "head_count",
            "half as many heads",
            "components",
            "blocks.0.attn.proj:input",
            config=lambda c: {"num_heads": c.num_heads // 2},
        ),
        Mutation(
            "mean_pool",
            "mean of the patch tokens instead of the class token",
            "components",
            "head:input",
            config=lambda c: {"global_pool": "avg"},
        ),
        Mutation(
            "swap_q_k",
            "query and key rows swapped",
            "components",
            "blocks.0.attn.qkv",
            tensors=thirds_swapped(_QKV),
        ),
        Mutation(
            "qkv_heads_outermost",
            "qkv rows read head by head",
            "components",
            "blocks.0.attn.qkv",
            tensors=changed(_QKV, _heads_outermost),
        ),
        Mutation(
            "patch_transposed",
            "pixels of a patch flattened column by column",
            "components",
            "patch_tokens.project",
            tensors=changed("patch_tokens.project.weight", _transpose_patches),
        ),
        Mutation(
            "square_kernel_transposed",
            "a square kernel not transposed",
            "components",
            "blocks.0.attn.proj",
            tensors=changed(".attn.proj.weight", lambda a: np.ascontiguousarray(a.T)),
        ),
        Mutation(
            "positions_shifted",
            "position table one row off",
            "components",
            "blocks.0:input",
            tensors=changed("pos_embed", lambda a: np.roll(a, 1, axis=1)),
        ),
        Mutation(
            "no_positions",
            "position table left at zero",
            "components",
            "blocks.0:input",
            tensors=changed("pos_embed", np.zeros_like),
        ),
        Mutation(
            "class_token_zero",
            "class token left at zero",
            "components",
            "blocks.0:input",
            tensors=changed("cls_token", np.zeros_like),
        ),
        Mutation(
            "bias_dropped",
            "bias of the first MLP layer left at zero",
            "components",
            "blocks.0.neuralnet.fc1",
            tensors=changed(".neuralnet.fc1.bias", np.zeros_like),
        ),
        Mutation(
            "blocks_swapped",
            "the first two blocks in the wrong order",
            "components",
            "blocks.0.norm1",
            tensors=exchanged("blocks.0.", "blocks.1."),
        ),
        Mutation(
            "norms_swapped",
            "norm1 and norm2 of every block swapped",
            "components",
            "blocks.0.norm1",
            tensors=exchanged(".norm1.", ".norm2."),
        ),
        Mutation(
            "class_token_last",
            "class token after the patch tokens instead of before them",
            "components",
            "blocks.0:input",
            patches=((VisionTransformer, "encode", _encode(_class_token_last)),),
        ),
        Mutation(
            "class_token_without_position",
            "position embedding added before the class token is prepended",
            "components",
            "blocks.0:input",
            patches=((VisionTransformer, "encode", _encode(_class_token_without_position)),),
        ),
        Mutation(
            "no_residual",
            "no residual connection around the attention",
            "components",
            "blocks.0.norm2:input",
            patches=((Block, "__call__", _no_residual),),
        ),
        Mutation(
            "post_norm",
            "post-norm instead of pre-norm",
            "components",
            "blocks.0.norm1",
            patches=((Block, "__call__", _post_norm),),
        ),
        Mutation(
            "softmax_over_queries",
            "softmax along the wrong axis",
            "components",
            "blocks.0.attn.proj:input",
            patches=((attention, "dot_product_attention", _softmax_over_queries),),
        ),
        Mutation(
            "image_transposed",
            "height and width of the image swapped",
            "components",
            "patch_tokens.project",
            images=_columns_first,
        ),
        Mutation(
            "intermediate_norm",
            "no final norm on intermediate features with norm=True",
            "intermediates",
            "blocks.0:norm",
            patches=((VisionTransformer, "forward_intermediates", wrap_method_once(_never_normed)),),
        ),
        Mutation(
            "intermediate_index",
            "intermediate features of a block's input instead of its output",
            "intermediates",
            "blocks.0",
            patches=((vision_transformer, "run_model", _one_block_early),),
        ),
        Mutation(
            "intermediate_prefix",
            "class token kept in intermediate features",
            "intermediates",
            "blocks.0",
            patches=((vision_transformer, "laid_out", _prefix_kept),),
        ),
        Mutation(
            "heads_averaged",
            "attention weights averaged over the heads",
            "intermediates",
            "blocks.0:attention",
            patches=((attention_weights, "attention_maps", _heads_averaged),),
        ),
        Mutation(
            "fast_variance",
            "variance as E[x^2] - E[x]^2, Flax's default, which loses digits on large means",
            "stressed",
            "blocks.0.norm1",
            patches=((norm, "_standardise", _fast_variance),),
        ),
        Mutation(
            "gelu_gradient",
            "GELU's gradient without its density term",
            "gradients",
            "image",
            patches=((activations, "ACTIVATIONS", {**activations.ACTIVATIONS, "gelu": _gelu_wrong_slope}),),
        ),
        Mutation(
            "norm_gradient",
            "LayerNorm's gradient with mean and variance as constants",
            "gradients",
            "image",
            patches=((norm, "layer_norm", _layer_norm_scale_only),),
        ),
        Mutation(
            "attention_gradient",
            "softmax's gradient without its row sum",
            "gradients",
            "image",
            patches=((attention, "dot_product_attention", _attention_without_row),),
        ),
        Mutation(
            "patch_gradient",
            "no gradient of the patch embedding's kernel",
            "gradients",
            "patch_tokens.project.weight",
            patches=(
                (patch_embed, "matmul", _matmul_without_kernel_gradient),
                (patch_embed, "stored_linear", _stored_linear_without_kernel_gradient),
            ),
        ),
        Mutation(
            "trained_positions",
            "the fixed position table is trained",
            "gradients",
            "pos_embed",
            patches=((VisionTransformer, "encode", _encode(_trained_positions)),),
        ),
        Mutation(
            "decay_class_token",
            "weight decay on the class token and the position table too",
            "steps",
            "loss",
            decay_everything=True,
        ),
        Mutation("adam_eps", "Adam's epsilon 1e-7 instead of 1e-8", "steps", "loss", optimizer=AdamW(eps=1e-7)),
        Mutation("adam_beta2", "Adam's beta2 0.99 instead of 0.999", "steps", "loss", optimizer=AdamW(beta2=0.99)),
    )
}


def get_mutation(name: str, others: Iterable[str] = ()) -> Mutation:
    """Returns the mutation of that name, or ValueError suggesting the nearest."""
    if name not in MUTATIONS:
        hint = suggest(name, [*MUTATIONS, *others], "`vit-flax compare --mutate list` lists them")
        raise ValueError(f"no mutation named {name!r}; {hint}")
    return MUTATIONS[name]
