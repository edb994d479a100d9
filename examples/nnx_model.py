"""A converted model as an NNX module, through Flax's bridge."""

import jax
import numpy as np
from flax import nnx

import vit_flax

model = vit_flax.create_model("vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2, num_classes=5)
images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
params = jax.jit(model.init)(jax.random.key(1), images)["params"]  # or those of vit_flax.load

module = nnx.bridge.ToNNX(model, rngs=nnx.Rngs(0)).lazy_init(images)
nnx.update(module, nnx.State(jax.tree.map(nnx.Param, params)))
difference = np.abs(module(images) - model.apply({"params": params}, images)).max()
print("largest difference:", difference)
assert difference == 0
