"""A training step of your own: optax, dropout and stochastic depth, a batch split over all devices."""

import jax
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import vit_flax
from vit_flax.config import DropRates

model = vit_flax.create_model("vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=4,
                              num_classes=10).clone(drop=DropRates(drop_path_rate=0.1))  # fmt: skip
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("data"))
images = jax.device_put(np.random.default_rng(0).normal(size=(32, 16, 16, 3)).astype(np.float32), split)
labels = jax.device_put(np.arange(32) % 10, split)

params = jax.jit(model.init, out_shardings=NamedSharding(mesh, PartitionSpec()))(jax.random.key(0), images)["params"]
tx = optax.adamw(3e-3, mask=vit_flax.weight_decay_mask(model.config, params))


@jax.jit
def step(params, opt_state, key):
    """Returns parameters and optimiser state after a step, and the loss."""

    def loss_fn(params):
        logits = model.apply({"params": params}, images, rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, loss


state, losses = (params, tx.init(params)), []
for number in range(10):
    *state, loss = step(*state, jax.random.key(number))
    losses.append(float(loss))
print(losses)
assert losses[-1] < losses[0]
