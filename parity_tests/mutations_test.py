"""The comparison must be able to fail: every deliberate error is caught, first in the row that it touches."""

import itertools
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from parity_tests.agreement import converted
from vit_flax.models import Precision, attention_backend, tokens_to_token
from vit_flax.models.precision import compiled_for
from vit_flax.parity import compare_components, first_divergence
from vit_flax.parity.digits import UNBROKEN, UNCHANGED, DigitsCase
from vit_flax.parity.mutations import MUTATIONS, Mutation
from vit_flax.reference import T2T_ViT

# Other programs that compute in float64: layers in the forms that store activations, for a TPU and for a GPU.
STORED = Precision(stored=jnp.float64, stream=jnp.float64, products=lax.Precision.DEFAULT)
PLATFORMS = ("tpu", "gpu")


def _divergence(mutation: Mutation, policy: Precision = UNCHANGED, platform: str | None = None) -> Any:
    """Returns section and name of the first row that differs, stopping there; None if none does."""
    with mutation.applied(), compiled_for(platform), attention_backend("auto" if policy.stored is None else "stored"):
        case = DigitsCase(mutation, num_steps=3, batch=8, policy=policy)
        for section, compare in case.comparisons():
            name = first_divergence(compare())
            if name is not None:
                return section, name.removeprefix("backbone.")
    return None


def test_there_are_at_least_twenty() -> None:
    assert len(MUTATIONS) >= 20


def test_nothing_differs_without_a_mutation() -> None:
    assert _divergence(UNBROKEN) is None


ROWS: dict[tuple[str, str], str] = {}  # the first of the mutations that show first in the same row
for _name, _mutation in MUTATIONS.items():
    ROWS.setdefault((_mutation.section, _mutation.first), _name)


@pytest.mark.parametrize(
    "name", [name if name in ROWS.values() else pytest.param(name, marks=pytest.mark.slow) for name in MUTATIONS]
)
def test_mutation_is_caught_where_it_acts(name: str) -> None:
    mutation = MUTATIONS[name]
    found = _divergence(mutation)
    assert found is not None, f"mutation {name} survives: {mutation.description}"
    assert found == (mutation.section, mutation.first)


@pytest.mark.parametrize("platform", ["tpu", pytest.param("gpu", marks=pytest.mark.slow)])
def test_nothing_differs_under_a_policy_that_stores_float64(platform: str) -> None:
    assert _divergence(UNBROKEN, STORED, platform) is None


# of layers that are computed in another form there, forward and backward
STORED_FIRST = {("softmax_over_queries", "tpu")}


@pytest.mark.parametrize(
    ("name", "platform"),
    [
        case if case in STORED_FIRST else pytest.param(*case, marks=pytest.mark.slow)
        for case in itertools.product(MUTATIONS, PLATFORMS)
        if case[0] != "fast_variance"  # the digits that it loses are float32's: stored in float64 nothing is off
    ],
)
def test_mutation_is_caught_under_a_policy_that_stores_float64(name: str, platform: str) -> None:
    found = _divergence(MUTATIONS[name], STORED, platform)
    assert found is not None, f"mutation {name} survives: {MUTATIONS[name].description}"
    assert found[0] == MUTATIONS[name].section


def _unfold_rows_last(images: Any, kernel: int) -> Any:
    split = soft_split(images, kernel)
    batch, rows, columns, _ = split.shape
    return split.reshape(batch, rows, columns, -1, kernel, kernel).swapaxes(4, 5).reshape(split.shape)


def _no_padding(images: Any, kernel: int) -> Any:
    split = soft_split(images[:, 1:-1, 1:-1], kernel)
    rows, columns = (tokens_to_token.softsplit_size(n, kernel) for n in images.shape[1:3])
    return jnp.pad(split, ((0, 0), (0, rows - split.shape[1]), (0, columns - split.shape[2]), (0, 0)))


def _transposed_grid(images: Any, kernel: int) -> Any:
    return soft_split(images, kernel).swapaxes(1, 2)


soft_split = tokens_to_token.soft_split


def _broken(name: str, description: str, soft_split: Any) -> Mutation:
    first = "tokens_to_token.transformer1.norm1"
    return Mutation(name, description, "components", first, patches=((tokens_to_token, "soft_split", soft_split),))


T2T_MUTATIONS = {
    m.name: m
    for m in (
        UNBROKEN,
        _broken("soft_split_order", "pixels of a soft split read column by column", _unfold_rows_last),
        _broken("soft_split_padding", "no padding around the image", _no_padding),
        _broken("token_grid_transposed", "tokens laid back into an image of swapped sides", _transposed_grid),
    )
}


@pytest.mark.parametrize("name", T2T_MUTATIONS)
def test_t2t_mutation_is_caught_where_it_acts(name: str) -> None:
    mutation = T2T_MUTATIONS[name]
    subject, _ = converted(
        T2T_ViT((2, 16, 16), (5, 3, 3), 2, 16, 8, 1, depth=1), "explained_t2t", image_size=(16, 16), num_heads=1
    )
    images = np.random.default_rng(0).standard_normal((2, 2, 16, 16))
    with mutation.applied():
        assert (first_divergence(compare_components(subject, images)) or "") == mutation.first
