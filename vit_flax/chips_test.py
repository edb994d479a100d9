"""JAX's device_kind names one of the published chips, or none."""

import pytest

from vit_flax.chips import CHIPS, chip_of_kind


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"), ("TPU v5 lite", "v5e"), ("TPU v5e", "v5e"), ("TPU v5", "v5p"), ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H200", "h200"), ("NVIDIA L4", None), ("TPU v3", None), ("cpu", None),
    ],
)  # fmt: skip
def test_the_chip_of_a_device(kind: str, name: str | None) -> None:
    assert chip_of_kind(kind) == (None if name is None else CHIPS[name])
