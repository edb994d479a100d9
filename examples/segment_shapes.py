"""A linear segmentation head is trained on the frozen tokens of a Vision Transformer."""

import jax
import numpy as np

import vit_flax
from vit_flax.train.data.drawn_shapes import CLASSES, write_shapes
from vit_flax.train.data.mask_folder import MaskFolder
from vit_flax.train.segmentation import SegmentationConfig, evaluate_head, frozen_grids, labels_of, train_head

write_shapes("shapes", {"train": 24, "val": 6}, side=32)  # pictures and masks, drawn here
train, val = MaskFolder.open("shapes", "train"), MaskFolder.open("shapes", "val")

# your weights: model, params = vit_flax.load("hf://facebook/dinov2-small", image_size=224)
model = vit_flax.create_model("vit_tiny_patch16_224", image_size=32, patch_size=4, depth=1, num_classes=0)
params = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32))["params"]
transform = vit_flax.Preprocessing(image_size=(32, 32), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), crop_mode="squash")
predictor = vit_flax.Predictor(model, params, batch_size=8, transform=transform)

config = SegmentationConfig(epochs=3, batch_size=8)
grids = frozen_grids(predictor, train, config.layers)  # (images, rows, columns, channels), computed once
head, variables = train_head(grids, labels_of(train, (32, 32)), len(CLASSES), config)
scores = evaluate_head(head, variables, frozen_grids(predictor, val, config.layers), val)
print(dict(zip(CLASSES, scores.iou.round(2).tolist(), strict=True)), round(scores.mean_iou, 2))
assert scores.iou[0] > 0.5
