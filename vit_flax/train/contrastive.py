"""Contrastive losses, softmax and sigmoid, of a batch that is sharded over devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from vit_flax.models.kernel_sharding import AnyMesh
from vit_flax.train.sharding import BATCH

_HIGHEST = lax.Precision.HIGHEST


def softmax_contrastive(
    images: Float[Array, "b e"], texts: Float[Array, "b e"], scale: Float[Array, ""]
) -> Float[Array, ""]:
    """Computes CLIP's loss: the mean cross-entropy of each image's text among all, and of each text's image.

    Embeddings are of length 1; of a batch that is split by devices each computes its own rows of the logits.

    Reference: open_clip.loss.ClipLoss; transformers' image_text_contrastive_loss; arXiv 2103.00020.
    """
    logits = jnp.matmul(images, texts.T, precision=_HIGHEST) * scale
    own = jnp.diagonal(logits)
    of_images = jax.nn.logsumexp(logits, axis=1) - own
    of_texts = jax.nn.logsumexp(logits, axis=0) - own
    return (of_images.mean() + of_texts.mean()) / 2


def sigmoid_contrastive(
    images: Float[Array, "b e"],
    texts: Float[Array, "b e"],
    scale: Float[Array, ""],
    bias: Float[Array, ""],
    mesh: AnyMesh | None = None,
) -> Float[Array, ""]:
    """Computes SigLIP's loss: the binary cross-entropy of every pair, summed over texts, averaged over images.

    Where `mesh` splits the batch, devices hand their texts round in a ring and never hold the logits of more than their
    own images with one device's texts.

    Reference: SiglipLoss of open_clip.loss; transformers' SiglipModel; arXiv 2303.15343, section 3.3.
    """
    if mesh is None or mesh.shape["data"] * mesh.shape["fsdp"] == 1:
        return _pairs(images, texts, scale, bias, jnp.ones((), bool)) / len(images)
    devices = mesh.shape["data"] * mesh.shape["fsdp"]
    ring = [(device, (device + 1) % devices) for device in range(devices)]

    def on_one(images: Array, texts: Array, scale: Array, bias: Array) -> Array:
        # rematerialised in the backward pass, which would else store the logits of all pairs
        pairs = jax.checkpoint(_pairs)

        def with_next(carry: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            texts, total = carry
            texts = lax.ppermute(texts, BATCH, ring)
            return (texts, total + pairs(images, texts, scale, bias, jnp.zeros((), bool))), None

        total = pairs(images, texts, scale, bias, jnp.ones((), bool))
        (_, total), _ = lax.scan(with_next, (texts, total), None, length=devices - 1)
        return lax.psum(total, BATCH)

    split, whole = PartitionSpec(BATCH), PartitionSpec()
    total = jax.shard_map(on_one, mesh=mesh, in_specs=(split, split, whole, whole), out_specs=whole)
    return total(images, texts, scale, bias) / len(images)


def _pairs(images: Array, texts: Array, scale: Array, bias: Array, is_own: Array) -> Float[Array, ""]:
    """Returns the sum over images and texts; pairs on the diagonal are positive where `is_own`."""
    logits = jnp.matmul(images, texts.T, precision=_HIGHEST) * scale + bias
    together = jnp.eye(*logits.shape, dtype=bool) & is_own
    return -jax.nn.log_sigmoid(jnp.where(together, logits, -logits)).sum()
