"""Exact nearest-neighbour search, in chunks that fit in memory."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

METRICS = ("cosine", "euclidean")
SCORES_BYTES = 256 * 2**20  # bytes of one chunk's scores
SPARE = 16  # candidates beyond `count`: float32 may rank close ones in another order


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """The nearest vectors of each query, in order of decreasing similarity."""

    indices: Int[np.ndarray, "q k"]
    scores: Float[np.ndarray, "q k"]  # float64: cosine similarities, or negative distances


def nearest(
    queries: Float[np.ndarray, "q d"],
    gallery: Float[np.ndarray, "g d"],
    count: int,
    metric: str = "cosine",
    without_self: bool = False,
) -> Neighbours:
    """Returns the `count` nearest vectors of the gallery for each query.

    Candidates are found in float32 on the device and ranked in float64; ties go to the first in the gallery.

    Args:
        queries: vectors.
        gallery: vectors.
        count: number of neighbours.
        metric: 'cosine' or 'euclidean'.
        without_self: the queries are the gallery, and a vector is not its own neighbour.

    Raises:
        ValueError: the gallery has fewer vectors, or there is no such metric.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be 'cosine' or 'euclidean', got {metric!r}")
    if not 1 <= count <= len(gallery) - without_self:
        raise ValueError(f"{count} neighbours are asked for, of {len(gallery) - without_self} there are")
    if metric == "cosine":
        queries, gallery = unit(queries), unit(gallery)
    wanted = min(count + SPARE + without_self, len(gallery))
    on_device, rows = jnp.asarray(gallery, jnp.float32), max(1, SCORES_BYTES // (4 * len(gallery)))
    found = Neighbours(np.empty((len(queries), count), np.int64), np.empty((len(queries), count)))
    for first in range(0, len(queries), rows):
        part = queries[first : first + rows]
        padded = np.pad(part, ((0, rows - len(part)), (0, 0))) if first else part  # at most one other shape
        candidates = np.sort(np.asarray(_candidates(jnp.asarray(padded, jnp.float32), on_device, wanted, metric)), 1)
        for row, (query, own) in enumerate(zip(part, candidates, strict=False), first):
            own = own[own != row] if without_self else own
            scores = _scores(query, gallery[own], metric)
            best = np.argsort(-scores, kind="stable")[:count]
            found.indices[row], found.scores[row] = own[best], scores[best]
    return found


def unit(vectors: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    """Returns L2-normalised vectors; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def _scores(query: np.ndarray, vectors: np.ndarray, metric: str) -> np.ndarray:
    query, vectors = query.astype(np.float64), vectors.astype(np.float64)
    return vectors @ query if metric == "cosine" else -np.linalg.norm(vectors - query, axis=-1)


@partial(jax.jit, static_argnums=(2, 3))
def _candidates(queries: jax.Array, gallery: jax.Array, count: int, metric: str) -> jax.Array:
    scores = jnp.matmul(queries, gallery.T, precision=lax.Precision.HIGHEST)
    if metric == "euclidean":
        scores = 2 * scores - jnp.square(gallery).sum(-1)
    return lax.top_k(scores, count)[1]
