"""`vit-flax evaluate --caption-retrieval`: recall of image-text retrieval."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_flax.cli.data import open_data
from vit_flax.cli.loading import load_model
from vit_flax.cli.options import format_table

if TYPE_CHECKING:
    from collections.abc import Iterator

RANKS = (1, 5, 10)


def run_retrieval(options: argparse.Namespace) -> int:
    """Runs the command and returns its exit status.

    Raises:
        ValueError: the data have no texts, or the checkpoint no text tower or tokeniser.
    """
    from vit_flax.tokenizing import find_tokenizer
    from vit_flax.train.data import SOURCES, has_pairs
    from vit_flax.zero_shot import embed_texts, recall_of_groups

    name = options.data.partition(":")[0]
    if name in SOURCES and not has_pairs(name):
        there = ", ".join(source for source in SOURCES if has_pairs(source))
        raise ValueError(f"--caption-retrieval needs images with texts, and {name} has classes: there are {there}")
    loaded = load_model(options, tower="both")
    assert loaded.towers is not None
    model, params = loaded.towers
    tokenizer = find_tokenizer(loaded.reading.checkpoint, model.config, options.tokenizer)
    loader = open_data(options, loaded, options.split, None, texts=True)
    source: Any = loader.source
    print(f"... {len(source):,} images with texts of {source.name}", file=sys.stderr)
    loaded.show_notes()
    rows: list[int] = []

    def images() -> Iterator[np.ndarray]:
        for batch in loader:
            rows.extend(batch["index"])
            yield from batch["image"]

    try:
        found = list(loaded.predictor.stream("logits", images()))
    finally:
        loader.close()
    kept = np.asarray(rows) >= 0  # others pad the last batch, or are unreadable
    embeddings = np.concatenate(found)[: len(rows)][kept]
    texts = [source.text(int(row)) for row in np.asarray(rows)[kept]]
    if not texts:
        raise ValueError(f"{source.name}: holds no image that can be read")
    unit = embeddings / np.linalg.norm(embeddings, axis=-1, keepdims=True)
    groups = np.unique(texts, return_inverse=True)[1]  # every image of a text is a hit for it
    recall = recall_of_groups(unit, embed_texts(model, params, texts, tokenizer), groups, groups, RANKS)
    bad = {source.describe(index): reason for index, reason in loader.bad.items()}
    if options.json:
        answer = {"source": source.name, "count": len(texts), "recall": recall, "bad": bad, "notes": loaded.notes}
        print(json.dumps(answer, indent=1))
        return 0
    ways = {"image_to_text": "text of an image", "text_to_image": "image of a text"}
    table = [(words, *(f"{recall[f'{way}@{rank}']:.2%}" for rank in RANKS)) for way, words in ways.items()]
    print(format_table([("found", *(f"first {rank}" for rank in RANKS)), *table]))
    print(f"\nof {len(texts):,} images with texts" + (f", {len(bad)} could not be read" if bad else ""))
    return 0
