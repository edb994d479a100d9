"""LoRA adapters of frozen kernels: trained, merged, and written in peft's format."""

import jax
import numpy as np
import optax

import vit_flax
from vit_flax.lora.adapters import begin, merged
from vit_flax.lora.config import LoraConfig
from vit_flax.lora.peft_folder import write_adapter

model = vit_flax.create_model("vit_tiny_patch16_224", image_size=16, patch_size=4, embed_dim=48, depth=2, num_heads=4,
                              num_classes=10)  # fmt: skip
images = np.random.default_rng(0).normal(size=(32, 16, 16, 3)).astype(np.float32)
params = jax.jit(model.init)(jax.random.key(0), images)["params"]  # or those of vit_flax.load
lora = LoraConfig(targets="q,v,mlp/fc1", rank=4, alpha=8)  # and the head is trained whole
trained, frozen = begin(jax.random.key(1), params, lora)
tx = optax.adamw(1e-2)


@jax.jit
def step(trained, opt_state):
    """Returns the adapters and the optimiser's state after a step: nothing frozen has a gradient."""

    def loss_fn(trained):
        logits = model.apply({"params": merged(frozen, trained, lora)}, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, np.arange(32) % 10).mean()

    loss, grads = jax.value_and_grad(loss_fn)(trained)
    updates, opt_state = tx.update(grads, opt_state, trained)
    return optax.apply_updates(trained, updates), opt_state, loss


opt_state, losses = tx.init(trained), []
for _ in range(5):
    trained, opt_state, loss = step(trained, opt_state)
    losses.append(float(loss))
write_adapter("adapter", model.config, trained, frozen, lora, layout="timm", base="vit.safetensors")
print(losses)
assert losses[-1] < losses[0]
