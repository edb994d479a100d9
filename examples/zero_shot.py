"""A small CLIP is trained on drawn shapes with captions, and classifies shapes zero-shot by texts."""

from dataclasses import replace

import numpy as np

import vit_flax
from vit_flax.recipes import get_recipe
from vit_flax.train.data.shapes import Shapes
from vit_flax.train.loop import Run
from vit_flax.zero_shot import ZeroShot

# more steps and the recipe's own width make it good: `vit-flax train shapes --out runs/shapes`
config = get_recipe("shapes")().replace({"steps": 4, "model.depth": 1, "model.text_depth": 1, "data.batch_size": 32})
Run(replace(config, out="run"), quiet=True).run()

model, params = vit_flax.load("run/final")  # of both towers
tokenizer = vit_flax.read_tokenizer("run/final", model.config)
names = ["circle", "square", "triangle", "cross"]
classes = ZeroShot.of(model, params, names, ["a small red {} on black at the left"], tokenizer=tokenizer)

source = Shapes("test")
images = np.stack([source[index]["image"] for index in range(8)]).astype(np.float32)
embeddings = model.apply({"params": params}, images / 127.5 - 1, method="encode_images")
for index, shares in enumerate(classes.probabilities(embeddings)):
    print(f"{source.text(index)}: {names[shares.argmax()]} {shares.max():.0%}")
