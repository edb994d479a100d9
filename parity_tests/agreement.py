"""The steps of every layout's test: run both models, assert float64 agreement, convert back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import vit_flax
from parity_tests.random_weights import randomise, relative_error
from vit_flax.convert import get_layout
from vit_flax.parity import Row, Subject, compare_components, compare_gradients, subject_of
from vit_flax.parity.tolerances import FLOAT64_RELATIVE, SEEN
from vit_flax.parity.wrong_tensors import Wrong


def quick(cases: Iterable[Any], slow: Collection[Any]) -> list[Any]:
    """Returns the cases of a test, those of `slow` marked so."""
    return [pytest.param(case, marks=pytest.mark.slow) if case in slow else case for case in cases]


def run_torch(module: Callable[..., Any], images: np.ndarray) -> Any:
    """Returns the torch module's output for channels-last images."""
    with torch.no_grad():
        return module(torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))))


def run_flax(
    model: vit_flax.VisionTransformer, params: Any, images: np.ndarray, method: str = "__call__"
) -> np.ndarray:
    """Returns the linen model's output."""
    return np.asarray(model.apply({"params": params}, jnp.asarray(images), method=method))


def assert_agrees(ours: Any, theirs: Any) -> None:
    """Fails unless both agree to float64 rounding."""
    error = relative_error(ours, theirs)
    assert error <= FLOAT64_RELATIVE, f"relative error {error:.3g}"


def assert_differs(ours: Any, theirs: Any, least: float = SEEN) -> None:
    """Fails unless both differ by as much as a deliberate error must."""
    error = relative_error(ours, theirs)
    assert error > least, f"relative error {error:.3g}: not seen"


def assert_same_tensors(ours: dict[str, np.ndarray], theirs: dict[str, Any]) -> None:
    """Fails unless both have the same names with the same bits."""
    assert sorted(ours) == sorted(theirs)
    for name, tensor in theirs.items():
        expected = tensor.numpy() if hasattr(tensor, "numpy") else np.asarray(tensor)
        assert ours[name].dtype == expected.dtype, name
        assert ours[name].shape == expected.shape, name
        assert ours[name].tobytes() == np.ascontiguousarray(expected).tobytes(), name


def load_strictly(module: torch.nn.Module, tensors: dict[str, np.ndarray]) -> None:
    """Loads exported arrays into the torch module; it raises on a missing or unexpected name."""
    module.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()}, strict=True)


def assert_there_and_back(
    theirs: torch.nn.Module, model: vit_flax.VisionTransformer, params: Any, layout: str, folder: Path
) -> Any:
    """Fails unless tensors and config of a model survive, to the bit, files that either library writes.

    Returns:
        transformers' model as it is read from the file written here; None where the layout is not transformers'.
    """
    ours = vit_flax.to_state_dict(model, params, layout)
    assert_same_tensors(ours, theirs.state_dict())
    load_strictly(theirs, ours)
    vit_flax.save(folder / "ours", model, params, layout=layout)
    assert vit_flax.load(folder / "ours")[0].config == model.config
    if not layout.startswith("huggingface_"):
        return None
    kind: Any = type(theirs)
    reread, info = kind.from_pretrained(folder / "ours", output_loading_info=True, dtype=torch.float64)
    assert not any(info.values()), info
    theirs.save_pretrained(folder / "theirs")  # pyright: ignore[reportCallIssue]
    again, moved = vit_flax.load(folder / "theirs")
    assert again.config == model.config
    assert_same_tensors(vit_flax.to_state_dict(again, moved, layout), load_file(folder / "theirs/model.safetensors"))
    return reread.eval()


def assert_components_agree(
    module: torch.nn.Module, model: Any, params: Any, layout: str, images: np.ndarray
) -> list[Row]:
    """Fails unless every component that the layout pairs, and every gradient, agrees as the parity tool measures.

    Returns the gradients' rows.
    """
    subject = subject_of(module, model, params, get_layout(layout))
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    blocks = [flax for _, flax in subject.pairs if flax.startswith("blocks_")]
    assert len(blocks) >= 6 * model.config.depth
    gradients = compare_gradients(subject, channels_first)
    assert_rows_agree(compare_components(subject, channels_first) + gradients)
    return gradients


def assert_rows_agree(rows: Iterable[Row]) -> None:
    """Fails with every row that disagrees; an empty comparison fails too."""
    rows = list(rows)
    assert rows, "nothing was compared"
    wrong = [row for row in rows if not row.agrees]
    assert not wrong, "\n".join(map(str, wrong))


def converted(module: torch.nn.Module, layout: str, **overrides: Any) -> tuple[Subject, Any]:
    """Returns the Subject of a torch model with random weights, and its Flax model."""
    randomise(module)
    model, params = vit_flax.from_state_dict(module.state_dict(), layout, **overrides)
    return subject_of(module, model, params, get_layout(layout)), model


def wrongly_converted(tensors: Mapping[str, Any], wrong: Wrong, layout: str | None = None, **told: Any) -> Any:
    """Returns the Flax model and parameters of tensors that are converted with a deliberate error."""
    if callable(wrong):
        return vit_flax.from_state_dict(wrong(tensors), layout, **told)
    return vit_flax.from_state_dict(tensors, layout, **{**told, **wrong})
