"""A model as one file that takes raw pixels and runs where only JAX is; `model.onnx` would be ONNX."""

import json
from pathlib import Path

import jax
import numpy as np
from jax import export

import vit_flax

model = vit_flax.create_model("vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=24, depth=1,
                              num_classes=2)  # fmt: skip
params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 16, 16, 3), np.float32))["params"]
prepared = vit_flax.Preprocessing(image_size=(16, 16), class_names=("cat", "dog"))
done = vit_flax.export_model("model.stablehlo", model, params, preprocessing=prepared, raw_size=(30, 40))
print("compared before it was written:", *done.comparisons)

program = export.deserialize(bytearray(Path("model.stablehlo").read_bytes()))
photos = np.random.default_rng(0).integers(0, 256, (3, 30, 40, 3)).astype(np.uint8)
(logits,) = program.call(photos)
expected = vit_flax.Predictor(model, params, transform=prepared, batch_size=3).logits(photos)
print(json.loads(Path("model.stablehlo.json").read_text())["labels"], logits)
assert np.allclose(logits, expected, atol=1e-5)
