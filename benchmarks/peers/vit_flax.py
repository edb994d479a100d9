"""Ours: jitted linen model, parameters on the device."""

from __future__ import annotations

from benchmarks.peers import Job, Prepared
from benchmarks.peers.jax_runs import prepare_inference, prepare_train_step

SETTINGS = "jax.jit; bfloat16: operands in bfloat16, sums in float32, inference with pre-cast kernels"


def prepare(job: Job) -> Prepared:
    """Builds the model from the weights and compiles it."""
    import jax
    import jax.numpy as jnp

    import vit_flax

    dtype = jnp.bfloat16 if job.case.precision == "bfloat16" else None
    model, params = vit_flax.load(job.weights, "timm", job.case.config)
    model = model.clone(dtype=dtype)

    def apply(params, images):
        return model.apply({"params": params}, images)

    if job.case.mode == "train_step":
        return prepare_train_step(job, apply, params)
    if dtype:
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf.astype(dtype) if path[-1].key == "kernel" else leaf, params
        )
    return prepare_inference(job, apply, params)
