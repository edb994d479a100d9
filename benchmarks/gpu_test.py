"""`make gpu` reports a machine without a GPU, and its measurement runs on any device."""

import jax
import pytest

from benchmarks.gpu import main, measure, step_config, table
from vit_flax.config import ViTConfig


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="there is a GPU")
def test_without_a_gpu(capsys) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("make gpu: JAX has no GPU here")


def test_a_step_is_measured_and_told() -> None:
    tiny = ViTConfig(image_size=(8, 8), patch_size=(4, 4), embed_dim=16, depth=1, num_heads=2, num_classes=10)
    config = step_config("vit_small_patch16_224", 4).replace(model=tiny)
    seconds, compiled = measure(config, jax.devices()[0], steps=2)
    assert seconds > 0
    assert "dot" in compiled.as_text()
    row = {
        "batch": 4,
        "predicted_seconds": 0.5 * seconds,
        "counted_seconds": seconds,
        "measured_seconds": seconds,
        "mfu": 0.25,
    }
    assert "| 2.00 | 25.0% |" in table({"device": "CPU", "commit": "0", "rows": {"tiny": row}})
