import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_flax import microbatches
from vit_flax.config import ViTConfig
from vit_flax.inference import Predictor
from vit_flax.microbatches import in_microbatches, microbatch_size
from vit_flax.models import build_model
from vit_flax.parity.tolerances import FLOAT32_ABSOLUTE, FLOAT32_RELATIVE

CPU = jax.devices("cpu")[:1]
BASE = ViTConfig()
SMALL = ViTConfig(embed_dim=384, num_heads=6)
TINY = ViTConfig(image_size=(8, 8), patch_size=(4, 4), embed_dim=8, depth=1, num_heads=2, num_classes=3)


@pytest.mark.parametrize("config", [BASE, SMALL, TINY, BASE.replace(image_size=(1024, 1024))])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_part_divides_the_batch_and_fits(config: ViTConfig, dtype: Any) -> None:
    tokens = config.num_patches + config.num_prefix_tokens
    image = tokens * config.mlp_dim * jnp.dtype(dtype).itemsize
    for batch in (1, 2, 4, 8, 12, 48, 64, 256):
        size = microbatch_size(config, batch, dtype, CPU)
        assert batch % size == 0
        fits = size * image <= microbatches.CPU_ACTIVATION_BYTES or size * tokens <= microbatches.CPU_TOKENS
        assert size in (1, batch) or fits


def test_how_many_images_fit() -> None:
    assert [microbatch_size(BASE, batch, devices=CPU) for batch in (1, 8, 32, 64)] == [1, 8, 8, 8]
    assert [microbatch_size(SMALL, batch, devices=CPU) for batch in (1, 8, 32, 36)] == [1, 8, 8, 6]
    assert microbatch_size(SMALL, 32, jnp.bfloat16, CPU) == 16
    assert microbatch_size(TINY, 4096, devices=CPU) == 4096
    assert microbatch_size(SMALL, 31, devices=CPU) == 31  # one by one would be slower than all at once


def test_only_one_cpu_device_computes_in_parts() -> None:
    accelerator: Any = types.SimpleNamespace(platform="tpu")
    assert microbatch_size(BASE, 64, devices=[accelerator]) == 64
    assert microbatch_size(BASE, 64, devices=CPU * 2) == 64


def test_parts_are_computed_in_their_order() -> None:
    def compute(part: Any) -> Any:
        return {"sum": part["x"].sum(-1) + part["y"], "count": jnp.full(len(part["y"]), len(part["y"]))}

    batch = {"x": jnp.arange(24.0).reshape(6, 4), "y": jnp.arange(6.0)}
    for size in (1, 2, 3, 6):
        result = jax.jit(lambda batch, size=size: in_microbatches(compute, batch, size))(batch)
        np.testing.assert_array_equal(result["sum"], compute(batch)["sum"])
        np.testing.assert_array_equal(result["count"], size)


def test_what_does_not_divide_is_refused() -> None:
    for size in (0, 4):
        with pytest.raises(ValueError, match=f"6 images do not divide into parts of {size}"):
            in_microbatches(lambda x: x, jnp.zeros((6, 2)), size)
    with pytest.raises(ValueError, match="got batch_size 0"):
        microbatch_size(BASE, 0)


@pytest.mark.parametrize(("images", "loops"), [(2, True), (6, False)])
def test_the_predictor_computes_in_parts_what_the_model_does(
    images: int, loops: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microbatches, "CPU_ACTIVATION_BYTES", images * 5 * TINY.mlp_dim * 4)
    monkeypatch.setattr(microbatches, "CPU_TOKENS", 0)
    model = build_model(TINY)
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((13, 8, 8, 3), np.float32)
    params = jax.jit(model.init)(jax.random.key(1), batch[:1])["params"]
    predictor = Predictor(model, params, batch_size=6)
    logits: Any = model.apply({"params": params}, batch)
    tokens: Any = model.apply({"params": params}, batch, method="features")
    np.testing.assert_allclose(predictor.logits(batch), logits, rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)
    np.testing.assert_allclose(predictor.features(batch), tokens, rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)
    np.testing.assert_allclose(predictor.embeddings(batch), tokens[:, 0], rtol=FLOAT32_RELATIVE, atol=FLOAT32_ABSOLUTE)
    program = predictor._compiled(predictor.image_shape, "logits").lower(params, batch[:6]).as_text()
    assert ("stablehlo.while" in program) == loops
