"""Every component alone: values and gradients in float64, and float32 within the derived bound of torch's own error."""

from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from parity_tests.agreement import assert_rows_agree
from parity_tests.random_weights import randomise
from vit_flax import reference
from vit_flax.config import T2TViTConfig, ViTConfig
from vit_flax.convert import get_layout
from vit_flax.convert.rules import Rule, match_template
from vit_flax.models import Attention, Block, LayerNorm, Mlp, PatchEmbed, RMSNorm, TokensToToken, TokenTransformer
from vit_flax.models.tokens_to_token import soft_split
from vit_flax.parity import Subject, compare_components, compare_gradients
from vit_flax.parity.tolerances import FLOAT64_RELATIVE, FLOAT64_ROUNDING

RNG = np.random.default_rng(0)


class Wrapped(nn.Module):
    """Nests a component at its path in the whole model, so that its tensors have the layout's names."""

    def __init__(self, module: nn.Module, name: str) -> None:
        super().__init__()
        self.inner, self.name = module, name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def _moves(layout: str, config: ViTConfig, prefix: str, target: str, names: list[str]) -> dict[str, tuple[Rule, str]]:
    moves = {}
    for name in names:
        for rule in get_layout(layout).rules(config):
            bindings = match_template(rule.source, f"{prefix}.{name}") if isinstance(rule, Rule) else None  # pyright: ignore
            if bindings is not None:
                assert isinstance(rule, Rule)
                moves[name] = (rule, rule.target.format(**bindings).removeprefix(f"{target}/"))
    return moves


def _check(
    module: nn.Module,
    flax_module: linen.Module,
    shape: tuple[int, ...],
    layout: str = "explained",
    config: ViTConfig | None = None,
    prefix: str = "backbone.blocks.0",
    target: str = "blocks_0",
    images: bool = False,
) -> None:
    """Compares a component with its linen module on random tokens, or on images."""
    from flax.traverse_util import flatten_dict, unflatten_dict

    randomise(module)
    config = config or ViTConfig()
    tensors = module.state_dict()
    moves = _moves(layout, config, prefix, target, list(tensors))
    assert moves.keys() == tensors.keys()
    params = {path: rule.operation.forward(tensors[name].numpy()) for name, (rule, path) in moves.items()}

    def export(tree: Any) -> dict[str, np.ndarray]:
        flat = flatten_dict(tree, sep="/")
        return {f"inner.{n}": rule.operation.inverse(np.asarray(flat[path]))[0] for n, (rule, path) in moves.items()}

    def run(params: Any, x: Any) -> Any:
        return flax_module.apply({"params": params}, x)

    subject = Subject(
        Wrapped(module, prefix),
        run,
        jax.tree.map(jnp.asarray, unflatten_dict(params, sep="/")),
        (("inner", ""),),
        export,
        **({} if images else {"to_flax": lambda x: x, "from_flax": lambda x: x}),
    )
    x = RNG.standard_normal(shape)
    for offset in (0.0, 256.0):  # activations of a large mean too
        assert_rows_agree(compare_components(subject, x + offset))
    rows = compare_gradients(subject, x)
    assert len(rows) == 1 + len(tensors)
    assert_rows_agree(rows)


@pytest.mark.parametrize(
    ("size", "patch", "chans"), [((8, 8), 4, 1), ((60, 100), 20, 1), ((6, 4), 2, 3), ((7, 7), 7, 2), ((3, 5), 1, 3)]
)
def test_patch_embed(size: tuple[int, int], patch: int, chans: int) -> None:
    module = reference.Patch_Tokenization((chans, *size), patch, 24)
    config = ViTConfig(image_size=size, patch_size=(patch, patch), in_chans=chans)
    flax_module = PatchEmbed(size, (patch, patch), 24, chans)
    names: Any = {"prefix": "patch_tokens", "target": "patch_embed"}
    _check(module, flax_module, (3, chans, *size), config=config, images=True, **names)


@pytest.mark.parametrize("heads", [1, 4, 7])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dim", "chan"), [(28, 28), (20, 56)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention(heads: int, bias: bool, dim: int, chan: int, scale: float | None) -> None:
    module = reference.Attention(dim, chan, heads, bias, scale)
    _check(
        module,
        Attention(chan, heads, bias, scale),
        (2, 9, dim),
        prefix="backbone.blocks.0.attn",
        target="blocks_0/attn",
    )


@pytest.mark.parametrize(("hidden", "out"), [(None, None), (48, None), (8, 24), (None, 12)])
@pytest.mark.parametrize("activation", ["gelu", "silu", "hardswish", "softplus"])
def test_mlp(hidden: int | None, out: int | None, activation: str) -> None:
    layer = {"gelu": nn.GELU, "silu": nn.SiLU, "hardswish": nn.Hardswish, "softplus": nn.Softplus}[activation]
    module = reference.NeuralNet(16, hidden, out, layer)
    names: Any = {"prefix": "backbone.blocks.0.neuralnet", "target": "blocks_0/mlp"}
    _check(module, Mlp(hidden, out, activation), (2, 5, 16), **names)


@pytest.mark.parametrize(
    ("module", "flax_module"),
    [
        (nn.LayerNorm(24), LayerNorm(1e-5)),
        (nn.LayerNorm(24, eps=1e-3), LayerNorm(1e-3)),
        (nn.RMSNorm(24), RMSNorm()),
        (nn.RMSNorm(24, eps=1e-4), RMSNorm(1e-4)),
    ],
)
def test_norm(module: nn.Module, flax_module: linen.Module) -> None:
    _check(module, flax_module, (2, 7, 24), prefix="backbone.norm", target="norm")


@pytest.mark.parametrize("norm_layer", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("ratio", [1.5, 4.0])
def test_block(norm_layer: str, ratio: float) -> None:
    norm = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}[norm_layer]
    module = reference.Encoding(24, 4, ratio, norm_layer=norm)
    config = ViTConfig(
        embed_dim=24, num_heads=4, mlp_ratio=ratio, qkv_bias=False, value_skip=True, norm_layer=norm_layer,
        norm_eps=1e-5 if norm_layer == "layernorm" else None,
    )  # fmt: skip
    _check(module, Block(config), (2, 11, 24))


@pytest.mark.parametrize(("dim", "chan", "heads"), [(49, 16, 1), (18, 28, 7), (144, 12, 4)])
def test_token_transformer(dim: int, chan: int, heads: int) -> None:
    module = reference.TokenTransformer(dim, chan, heads, 2.0, qkv_bias=True, qk_scale=0.2)
    flax_module = TokenTransformer(chan, heads, 2.0, True, 0.2)
    names: Any = {"prefix": "tokens_to_token.transformer1", "target": "tokens_to_token/transformer1"}
    _check(module, flax_module, (2, 10, dim), "explained_t2t", T2TViTConfig(), **names)


def test_tokens_to_token() -> None:
    module = reference.Tokens2Token((3, 20, 16), (5, 3, 3), 1, 8, 24)
    config = T2TViTConfig(
        image_size=(20, 16), softsplit_kernels=(5, 3, 3), num_heads=1, token_chan=8, embed_dim=24, qkv_bias=False,
        norm_eps=1e-5, in_chans=3,
    )  # fmt: skip
    names: Any = {"prefix": "tokens_to_token", "target": "tokens_to_token"}
    _check(module, TokensToToken(config), (2, 3, 20, 16), "explained_t2t", config, images=True, **names)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 7, 8, 31])
@pytest.mark.parametrize("size", [(31, 40), (37, 33)])
def test_soft_split_is_torch_unfold(kernel: int, size: tuple[int, int]) -> None:
    images = RNG.standard_normal((2, 3, *size))
    unfolded = nn.functional.unfold(
        torch.from_numpy(images), kernel, stride=(kernel + 1) // 2, padding=(kernel + 1) // 4
    ).transpose(1, 2)
    ours = np.asarray(soft_split(jnp.asarray(images.transpose(0, 2, 3, 1)), kernel))
    np.testing.assert_array_equal(ours.reshape(2, -1, ours.shape[-1]), unfolded.numpy())


def test_non_finite_inputs_spread_as_in_torch() -> None:
    module = randomise(reference.ViT_Model((1, 4, 8), 2, 16, 3, 2, depth=1))
    from vit_flax import from_state_dict

    model, params = from_state_dict(module.state_dict(), num_heads=2, image_size=(4, 8))
    images = RNG.standard_normal((4, 1, 4, 8))
    images[1, 0, 0, 0], images[2, 0, 1, 3], images[3, 0, 2, 2] = np.nan, np.inf, -np.inf
    theirs = module(torch.from_numpy(images)).detach().numpy()
    ours = np.asarray(model.apply({"params": params}, images.transpose(0, 2, 3, 1)))
    assert np.isfinite(ours[0]).all()
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))


def test_second_derivatives_agree_with_torch() -> None:
    """Forward-over-reverse and reverse-over-reverse differentiate the hand-written backward passes."""
    from vit_flax import from_state_dict

    module = randomise(reference.ViT_Model((1, 4, 4), 2, 16, 1, 2, depth=1))
    model, params = from_state_dict(module.state_dict(), num_heads=2, image_size=4)
    images, direction = RNG.standard_normal((2, 1, 4, 4)), RNG.standard_normal((2, 1, 4, 4))
    x = torch.from_numpy(images).requires_grad_()
    (gradient,) = torch.autograd.grad(module(x).square().sum(), x, create_graph=True)
    (theirs,) = torch.autograd.grad((gradient * torch.from_numpy(direction)).sum(), x)

    gradient_of = jax.grad(lambda x: jnp.square(model.apply({"params": params}, x)).sum())  # pyright: ignore
    ours, along = (jnp.asarray(a.transpose(0, 2, 3, 1)) for a in (images, direction))
    forward = jax.jit(lambda x, v: jax.jvp(gradient_of, (x,), (v,))[1])(ours, along)
    reverse = jax.jit(jax.grad(lambda x: (gradient_of(x) * along).sum()))(ours)
    for product in (forward, reverse):
        np.testing.assert_allclose(
            np.asarray(product).transpose(0, 3, 1, 2), theirs.numpy(), rtol=FLOAT64_RELATIVE, atol=FLOAT64_ROUNDING
        )


def test_a_parameter_that_flax_does_not_have_is_reported() -> None:
    module = torch.nn.Linear(4, 3).double()
    bias = jnp.asarray(module.bias.detach().numpy())
    subject = Subject(
        module,
        lambda p, x: x @ p["kernel"] + bias,
        {"kernel": jnp.asarray(module.weight.detach().numpy().T)},
        (),
        lambda tree: {"weight": np.asarray(tree["kernel"]).T},
        to_flax=lambda x: x,
        from_flax=lambda x: x,
    )
    rows = compare_gradients(subject, RNG.standard_normal((2, 4)))
    assert [(row.name, row.agrees) for row in rows] == [("image", True), ("weight", True), ("bias", False)]
    module.register_parameter("unread", torch.nn.Parameter(torch.ones(2)))
    assert compare_gradients(subject, RNG.standard_normal((2, 4)))[-1].agrees
