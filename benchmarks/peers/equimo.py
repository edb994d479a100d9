"""equimo's VisionTransformer (Equinox), vmapped over the batch as its documentation does."""

from __future__ import annotations

import importlib
import re
from typing import Any

import numpy as np

from benchmarks.peers import Job, Prepared
from benchmarks.peers.jax_runs import prepare_inference, prepare_train_step

SETTINGS = "jax.jit(jax.vmap(model)), exact GELU; bfloat16: parameters and images cast to bfloat16"


def _timm_name(path: str) -> str:
    name = re.sub(r"\.blocks\[0\]\.blocks\[(\d+)\]", r".blocks.\1", path)
    name = name.removeprefix(".").replace("global_pos_embed.weight", "pos_embed").replace(".prenorm.", ".norm1.")
    return re.sub(r"(blocks\.\d+)\.norm\.", r"\1.norm2.", name)


def prepare(job: Job) -> Prepared:
    """Builds the model from the weights and compiles it."""
    import jax
    import jax.numpy as jnp
    from safetensors.numpy import load_file

    eqx = importlib.import_module("equinox")  # by name: type checkers may not have it
    vit = importlib.import_module("equimo.models.vit")
    cfg, tensors = job.case.config, load_file(job.weights)
    arguments = {
        "img_size": cfg.image_size[0], "in_channels": cfg.in_chans, "dim": cfg.embed_dim,
        "patch_size": cfg.patch_size[0], "num_heads": cfg.num_heads, "depths": [cfg.depth], "reg_tokens": 0,
        "global_pool": "token", "num_classes": cfg.num_classes, "act_layer": "exactgelu", "eps": 1e-6,
        "key": jax.random.PRNGKey(0),
    }  # fmt: skip
    model = vit.VisionTransformer(**arguments)
    params, static = eqx.partition(model, eqx.is_array)

    def from_file(path: Any, leaf: Any) -> np.ndarray:
        return np.asarray(tensors[_timm_name(jax.tree_util.keystr(path))]).reshape(leaf.shape)

    params = jax.tree_util.tree_map_with_path(from_file, params)
    low = job.case.precision == "bfloat16"
    key = jax.random.PRNGKey(0)

    def apply(params, images):
        if low:
            params, images = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (params, images))
        model = eqx.combine(params, static)
        return jax.vmap(lambda image: model(image, key=key, inference=True))(images.transpose(0, 3, 1, 2))

    return (prepare_train_step if job.case.mode == "train_step" else prepare_inference)(job, apply, params)
