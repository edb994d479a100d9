"""A torch ViT becomes a Flax one with the same outputs, and its weights go back bit for bit."""

import jax.numpy as jnp
import numpy as np
import torch

import vit_flax
from vit_flax.reference import ViT_Model

torch_model = ViT_Model(img_size=(1, 60, 100), patch_size=20, token_len=64, num_heads=4, depth=2)
model, params = vit_flax.from_state_dict(torch_model.state_dict(), num_heads=4, image_size=(60, 100))

images = np.random.default_rng(0).normal(size=(2, 60, 100, 1)).astype(np.float32)  # (batch, height, width, channels)
logits = model.apply({"params": params}, jnp.asarray(images))
with torch.no_grad():
    expected = torch_model(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
print("largest difference:", np.abs(logits - expected).max())
assert np.allclose(logits, expected, atol=1e-5)

back = vit_flax.to_state_dict(model, params)
assert all(np.array_equal(back[name], tensor.numpy()) for name, tensor in torch_model.state_dict().items())
