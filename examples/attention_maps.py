"""Attention maps of the class token, by block and head."""

import jax
import numpy as np

import vit_flax

model = vit_flax.create_model("vit_tiny_patch16_224", image_size=32, patch_size=8, depth=3, num_classes=5)
images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
params = jax.jit(model.init)(jax.random.key(0), images)["params"]

maps = vit_flax.attention_maps(model, params, images)  # of each block (batch, heads, queries, keys)
for layer, weights in maps.items():
    print(layer, weights.shape)
of_class_token = maps[2][:, :, 0, 1:].reshape(2, 3, 4, 4)  # (batch, heads, rows, columns) of patches
assert np.allclose(maps[2].sum(axis=-1), 1, atol=1e-5)
print(of_class_token.mean(axis=(0, 2, 3)))
