"""A checkpoint is saved, loaded and run on pictures of any size."""

import jax
import numpy as np
from PIL import Image

import vit_flax

model = vit_flax.create_model("vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2, num_classes=3)
params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"]
preparation = vit_flax.Preprocessing(image_size=(32, 32), crop_pct=0.9, class_names=("ant", "bee", "cat"))
vit_flax.save("checkpoint", model, params, layout="timm", preprocessing=preparation)  # a folder that timm loads, too

model, params = vit_flax.load("checkpoint")
preparation = vit_flax.read_preprocessing("checkpoint")
rng = np.random.default_rng(0)
for number, size in enumerate(((40, 60), (64, 48), (100, 100))):
    Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(f"{number}.png")

predictor = vit_flax.Predictor(model, params, batch_size=2, transform=preparation)
probabilities = jax.nn.softmax(predictor.logits(["0.png", "1.png", "2.png"]))
for row in probabilities:
    print(preparation.class_names[int(row.argmax())], f"{row.max():.2f}")
assert probabilities.shape == (3, 3)
