"""Pictures of discs, squares and triangles with a mask of each: data that needs no download."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("background", "disc", "square", "triangle")


def write_shapes(folder: str | Path, counts: dict[str, int], side: int = 64, seed: int = 0) -> None:
    """Writes `folder/SPLIT/images` and `folder/SPLIT/masks`, as many pictures for each split as `counts` says.

    Shapes are of any colour and turned by any angle, on a noisy ground; masks hold the number of a class in CLASSES.
    """
    rng = np.random.default_rng(seed)
    for split, count in counts.items():
        for kind in ("images", "masks"):
            (Path(folder) / split / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            image, mask = draw_shapes(rng, side)
            image.save(Path(folder) / split / "images" / f"{number:04d}.png")
            mask.save(Path(folder) / split / "masks" / f"{number:04d}.png")
    (Path(folder) / "classes.txt").write_text("\n".join(CLASSES) + "\n", "utf-8")


def draw_shapes(rng: np.random.Generator, side: int) -> tuple[Image.Image, Image.Image]:
    """Returns a picture of two or three shapes and its mask."""
    ground = rng.integers(0, 80, 3) + rng.integers(0, 40, (side, side, 1))
    image = Image.fromarray(ground.astype(np.uint8))
    mask = Image.new("L", (side, side))
    for _ in range(rng.integers(2, 4)):
        kind, radius = int(rng.integers(1, len(CLASSES))), rng.uniform(side / 8, side / 4)
        centre, angle = rng.uniform(radius, side - radius, 2), rng.uniform(0, 2 * np.pi)
        colour = tuple(int(value) for value in rng.integers(120, 256, 3))
        for drawing, fill in ((ImageDraw.Draw(image), colour), (ImageDraw.Draw(mask), kind)):
            if kind == 1:
                low, high = centre - radius, centre + radius
                drawing.ellipse((*low, *high), fill=fill)
                continue
            corners = {2: 4, 3: 3}[kind]
            turns = angle + 2 * np.pi * np.arange(corners) / corners
            points = centre + radius * np.stack([np.cos(turns), np.sin(turns)], axis=1)
            drawing.polygon([(float(x), float(y)) for x, y in points], fill=fill)
    return image, mask
