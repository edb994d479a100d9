"""Tokens after several blocks, as timm's forward_intermediates gives them: in memory, with gradients, on the disk."""

import jax
import jax.numpy as jnp
import numpy as np

import vit_flax

model = vit_flax.create_model("vit_tiny_patch16_224", image_size=32, patch_size=8, depth=4, num_classes=0)
images = np.random.default_rng(0).normal(size=(6, 32, 32, 3)).astype(np.float32)
params = jax.jit(model.init)(jax.random.key(0), images[:1])["params"]


@jax.jit
def pyramid(params, images):
    # grids (batch, rows, columns, channels) after blocks 1 and 3, each with its class token; nothing else is kept
    return model.apply(
        {"params": params}, images, [1, 3], return_prefix_tokens=True, norm=True, intermediates_only=True,
        method="forward_intermediates",
    )  # fmt: skip


for grid, prefix in pyramid(params, images):
    print(grid.shape, prefix.shape)
gradient = jax.grad(lambda p: sum(jnp.abs(grid).mean() for grid, _ in pyramid(p, images)))(params)
print(jnp.abs(gradient["blocks_0"]["attn"]["qkv"]["kernel"]).max())

# any number of images, batch by batch, into a folder of .npy files that need not fit in memory
predictor = vit_flax.Predictor(model, params, batch_size=4)
with vit_flax.ArrayWriter("features") as writer:
    predictor.write(writer, vit_flax.Intermediates((1, 3)), images)
print(np.load("features/layer_3.npy", mmap_mode="r").shape)
