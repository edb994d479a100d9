"""Zero-shot classification by texts, and image-text retrieval."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, PyTree

from vit_flax.models import TwoTowers
from vit_flax.models.precision import compiled_for
from vit_flax.tokenizing import Tokenizer

TEMPLATE = "a photo of a {}"  # CLIP's own
_PLACE = "{}"
_SHOWN = 60


def zero_shot_classifier(
    model: TwoTowers,
    params: PyTree,
    names: Sequence[str],
    templates: Sequence[str] = (TEMPLATE,),
    *,
    tokenizer: Tokenizer,
    batch_size: int = 256,
) -> Float[np.ndarray, "k e"]:
    """Returns an embedding of length 1 for each class: the normalised mean of its prompts' embeddings.

    `ZeroShot` computes logits from these and image embeddings.

    Args:
        model: the two-tower model.
        params: its parameters.
        names: class names.
        templates: prompts in which `{}` stands for a name.
        tokenizer: tokeniser of the model, as `vit_flax.read_tokenizer` returns it.
        batch_size: texts computed together.

    Raises:
        ValueError: there is no name or no template, or a template has no `{}`; in one line.

    Reference: open_clip.build_zero_shot_classifier; arXiv 2103.00020, section 3.1.4.
    """
    if isinstance(names, str) or isinstance(templates, str):
        raise ValueError("give lists of names and of templates, also where there is only one")
    if not names or not templates:
        raise ValueError(f"no {'template' if names else 'name'} is given")
    if wrong := [template for template in templates if _PLACE not in template]:
        raise ValueError(f"the template {wrong[0][:_SHOWN]!r} has no {_PLACE} where a name goes")
    # str.replace, since a name or a template may have other braces
    texts = [template.replace(_PLACE, name) for name in names for template in templates]
    found = embed_texts(model, params, texts, tokenizer, batch_size).reshape(len(names), len(templates), -1)
    mean = found.astype(np.float64).mean(1)
    return (mean / np.linalg.norm(mean, axis=-1, keepdims=True)).astype(found.dtype)


def embed_texts(
    model: TwoTowers, params: PyTree, texts: Sequence[str], tokenizer: Tokenizer, batch_size: int = 256
) -> Float[np.ndarray, "t e"]:
    """Returns the text tower's embeddings of texts, L2-normalised."""
    tokens = tokenizer(texts)
    size = min(batch_size, max(1, len(tokens.numbers)))
    rows = [np.zeros((0, model.config.text.width), np.float32)][: not len(texts)]
    for first in range(0, len(texts), size):
        parts = [None if part is None else part[first : first + size] for part in (tokens.numbers, tokens.mask)]
        count = len(parts[0]) if parts[0] is not None else 0
        # the last batch is padded with its first text, so that one shape is compiled
        padded = [None if part is None else part[[*range(count), *[0] * (size - count)]] for part in parts]
        run = _compiled(model)  # pyright: ignore[reportArgumentType]
        rows.append(np.asarray(run(params, *padded))[:count])
    return np.concatenate(rows)


@functools.lru_cache(maxsize=8)
def _compiled(model: TwoTowers) -> Any:
    platform = jax.devices()[0].platform

    def run(params: PyTree, numbers: jax.Array, mask: jax.Array | None) -> jax.Array:
        with compiled_for(platform, 1):
            found: Any = model.apply({"params": params}, numbers, mask, method="encode_texts")
            return found

    return jax.jit(run)


@dataclasses.dataclass(frozen=True)
class ZeroShot:
    """A zero-shot classifier: logits of a two-tower model's image embeddings, of any length, and class embeddings."""

    names: tuple[str, ...]
    classifier: Float[np.ndarray, "k e"]  # of `zero_shot_classifier`
    scale: float  # factor of the logits, exp(logit_scale)
    bias: float | None  # logit bias; None: the model was trained with a softmax loss and has none

    @classmethod
    def of(
        cls,
        model: TwoTowers,
        params: Mapping[str, PyTree],
        names: Sequence[str],
        templates: Sequence[str] = (TEMPLATE,),
        *,
        tokenizer: Tokenizer,
    ) -> ZeroShot:
        """Returns the classifier of these names; arguments and errors are those of `zero_shot_classifier`."""
        classifier = zero_shot_classifier(model, params, names, templates, tokenizer=tokenizer)
        bias = float(params["logit_bias"]) if model.config.logit_bias else None
        return cls(tuple(names), classifier, float(np.exp(np.asarray(params["logit_scale"], np.float64))), bias)

    def logits(self, embeddings: Float[np.ndarray, "n e"]) -> Float[np.ndarray, "n k"]:
        """Returns the logits of image embeddings, which are L2-normalised here, in float64."""
        wide = np.asarray(embeddings, np.float64)
        wide = wide / np.linalg.norm(wide, axis=-1, keepdims=True)
        return wide @ np.asarray(self.classifier, np.float64).T * self.scale + (self.bias or 0.0)

    def probabilities(self, embeddings: Float[np.ndarray, "n e"]) -> Float[np.ndarray, "n k"]:
        """Returns the softmax over the classes, or each class's sigmoid where the model has a logit bias (SigLIP)."""
        logits = self.logits(embeddings)
        if self.bias is not None:
            return 0.5 * (1 + np.tanh(0.5 * logits))
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        return shares / shares.sum(-1, keepdims=True)


def retrieval_recall(
    images: Float[np.ndarray, "i e"],
    texts: Float[np.ndarray, "t e"],
    image_of: Int[np.ndarray, " t"] | None = None,
    ranks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Returns the recall at each rank of both directions, in [0, 1]: 'image_to_text@1' and so on.

    Ties count against the match.

    Args:
        images: L2-normalised embeddings of images.
        texts: L2-normalised embeddings of texts.
        image_of: index of each text's image; None: text i belongs to image i.
        ranks: numbers of nearest neighbours.

    Raises:
        ValueError: without `image_of` there are not as many texts as images, or an image has no text.
    """
    if image_of is None:
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} images and {len(texts)} texts: pass `image_of`, each text's image")
        image_of = np.arange(len(texts))
    if not len(texts) or set(range(len(images))) - set(image_of.tolist()):
        raise ValueError("every image needs a text")
    return recall_of_groups(images, texts, np.arange(len(images)), image_of, ranks)


def recall_of_groups(
    images: Float[np.ndarray, "i e"],
    texts: Float[np.ndarray, "t e"],
    image_groups: Int[np.ndarray, " i"],
    text_groups: Int[np.ndarray, " t"],
    ranks: Sequence[int] = (1, 5, 10),
) -> dict[str, float]:
    """Returns `retrieval_recall` where every image and text of one group match."""
    wide = np.asarray(images, np.float64), np.asarray(texts, np.float64)

    def places(rows: np.ndarray, groups: np.ndarray, others: np.ndarray, of_others: np.ndarray) -> np.ndarray:
        found = []
        for row, group in zip(rows, groups, strict=True):  # row by row: all pairs of a large set do not fit memory
            near, own = others @ row, of_others == group
            found.append((near[~own] >= near[own].max(initial=-np.inf)).sum())  # of several the nearest
        return np.asarray(found)

    of_images = places(wide[0], image_groups, wide[1], text_groups)
    of_texts = places(wide[1], text_groups, wide[0], image_groups)
    pairs = (("image_to_text", of_images), ("text_to_image", of_texts))
    return {f"{name}@{rank}": float((place < rank).mean()) for name, place in pairs for rank in ranks}
