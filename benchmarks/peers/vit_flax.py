"""Ours: jitted linen model, parameters on the device.

Variants: "whole": inference of the whole batch at once, not in microbatches as in `vit_flax.Predictor` on a CPU;
"accumulate": the training step with gradients accumulated over microbatches of 8 images, as by
`TrainConfig.accumulation`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.peers import Job, Prepared
from benchmarks.peers.jax_runs import prepare_inference, prepare_train_step

SETTINGS = (
    "jax.jit; inference in parts that fit the caches, as vit_flax.Predictor; bfloat16: operands in bfloat16, sums in "
    "float32, inference with pre-cast kernels"
)
ACCUMULATED = 8  # images of a part of the variant "accumulate"


def prepare(job: Job) -> Prepared:
    """Builds the model from the weights and compiles it."""
    import jax
    import jax.numpy as jnp

    import vit_flax
    from vit_flax.microbatches import in_microbatches, microbatch_size
    from vit_flax.models.precision import compiled_for

    dtype = jnp.bfloat16 if job.case.precision == "bfloat16" else None
    model, params = vit_flax.load(job.weights, "timm", job.case.config)
    model = model.clone(dtype=dtype)

    def apply(params, images):
        with compiled_for(jax.default_backend()):
            if job.case.mode != "features":
                return model.apply({"params": params}, images)
            asked: Any = {"stop_early": True, "intermediates_only": True}
            return model.apply({"params": params}, images, job.case.layers, **asked, method="forward_intermediates")

    if job.case.mode == "train_step":
        parts = max(1, job.case.batch // ACCUMULATED) if job.variant == "accumulate" else 1
        return prepare_train_step(job, apply, params, parts)
    if dtype:
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf, params
        )
    batch = job.case.batch
    size = batch if job.variant == "whole" else microbatch_size(job.case.config, batch, dtype)
    return prepare_inference(job, lambda params, images: in_microbatches(partial(apply, params), images, size), params)
