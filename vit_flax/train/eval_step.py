"""The evaluation step: a pure function of parameters and batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from vit_flax.config import TwoTowersConfig
from vit_flax.train.batch import Batch, normalise_batch
from vit_flax.train.config import TrainConfig
from vit_flax.train.losses import binary_cross_entropy
from vit_flax.train.modules import eval_model

MAX_CONFUSION_CLASSES = 1000  # with more, eval_step returns no confusion matrix


def eval_step(params: PyTree, batch: Batch, config: TrainConfig) -> dict[str, Array]:
    """Returns sums over a batch: loss, correct, correct5, count, and confusion (K, K), label by row.

    Rows with a negative label count nowhere. The loss is the cross-entropy, whatever is trained with. With several
    labels an image it is each class's own, and instead of what is correct there are the rows' `logits` and `labels`,
    float32 and int8 (B, K): what ranks the images of an evaluation needs all of them.
    """
    classes = config.model.num_classes
    if isinstance(config.model, TwoTowersConfig):
        return _embed_pairs(params, batch, config)
    model = eval_model(config)
    logits: Any = model.apply({"params": params}, normalise_batch(batch["image"], config))
    counts = batch["label"] >= 0
    labels = jnp.maximum(batch["label"], 0)
    if config.data.multi_label:
        logits = logits.astype(jnp.float32)
        counts = counts.all(-1)
        losses = jax.vmap(lambda own, hot: binary_cross_entropy(own[None], hot[None]))(logits, labels)
        sums = {"loss": jnp.where(counts, losses, 0).sum(), "count": counts.sum()}
        return sums | {"logits": logits, "labels": jnp.where(counts[:, None], labels, -1)}
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=-1)[:, 0]
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    # ties go to the first, as in argmax
    rank = ((logits > own) | ((logits == own) & (jnp.arange(classes) < labels[:, None]))).sum(-1)
    sums = {
        "loss": jnp.where(counts, losses, 0).sum(),
        "correct": (counts & (rank < 1)).sum(),
        "correct5": (counts & (rank < 5)).sum(),
        "count": counts.sum(),
    }
    if classes <= MAX_CONFUSION_CLASSES:
        confusion = jnp.zeros((classes, classes), jnp.int32)
        sums["confusion"] = confusion.at[labels, logits.argmax(-1)].add(counts.astype(jnp.int32))
    return sums


def _embed_pairs(params: PyTree, batch: Batch, config: TrainConfig) -> dict[str, Array]:
    """Returns the embeddings of a batch's images and texts (B, E), and its `texts`, -1 in rows that count nowhere.

    What is to be found among all of an evaluation needs all of them.
    """
    model = eval_model(config)
    images: Any = model.apply({"params": params}, normalise_batch(batch["image"], config), method="encode_images")
    texts: Any = model.apply({"params": params}, jnp.maximum(batch["label"], 0), method="encode_texts")
    scale = jnp.exp(params["logit_scale"])
    return {"image_embeddings": images, "text_embeddings": texts, "texts": batch["label"], "logit_scale": scale}
