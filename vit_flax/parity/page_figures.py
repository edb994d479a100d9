"""The page's figures of the model: patches, one token, the position table, attention, losses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from vit_flax.parity.page_images import heat, highlighted, paper, png
from vit_flax.parity.page_numbers import plural

_GAP = 2  # between patches, in pixels of the image


def patches_figure(figures: dict[str, Any]) -> str:
    """Draws an image cut into numbered patches, and one of them flattened to its token."""
    image, size, token = np.array(figures["image"]), figures["patch_size"], figures["token"]
    rows, columns = image.shape[0] // size, image.shape[1] // size
    step = size + _GAP
    width, below = columns * step - _GAP, rows * step - _GAP
    strip = below + 21
    parts = []
    for number, (row, column) in enumerate(itertools.product(range(rows), range(columns))):
        patch = image[row * size :, column * size :][:size, :size]
        x, y = column * step, row * step
        parts.append(_image(png(patch), x, y, size, size))
        tab = 4.2 if number < 10 else 6.4
        parts.append(f'<path class="tab" d="M{x} {y}h{tab}v5h-{tab}Z"/>')
        parts.append(f'<text class="patch" x="{x + tab / 2 - 0.2:g}" y="{y + 3.7}">{number}</text>')
        parts.append(f'<rect class="edge" x="{x}" y="{y}" width="{size}" height="{size}"/>')
    row, column = divmod(token, columns)
    x, y = column * step, row * step
    # from the patch's corner down beside its neighbour, and a bracket over the whole strip
    corner, bracket = x - 0.5, strip - 3
    parts += [
        f'<rect class="chosen" x="{x - 0.5}" y="{y - 0.5}" width="{size + 1}" height="{size + 1}"/>',
        f'<path class="arrow" d="M{corner} {y + size + 0.5}V{bracket - 4.2}"/>',
        f'<path class="head" d="M{corner} {bracket - 1.2}l-1.7 -3.4h3.4Z"/>',
        f'<path class="arrow" d="M0 {strip - 0.8}V{bracket}H{width}V{strip - 0.8}"/>',
        f'<text class="plain" x="{corner + 3.5}" y="{bracket - 5}">token {token}: {size * size} pixels</text>',
        _image(png(np.array(figures["token_values"])[None]), 0, strip, width, 9),
    ]
    for line in range(0, size, max(size // 4, 1)):
        at = line / size * width
        parts.append(f'<path class="tickmark" d="M{at:g} {strip + 9}v1.6"/>')
        parts.append(f'<text class="plain small" x="{at:g}" y="{strip + 14.6}">row {line}</text>')
    described = f"{rows} by {columns} patches; below them patch {token} as a strip"
    return _svg("patches", "An image cut into numbered patches, and one token", described, width, strip + 16, parts)


def positions_figure(table: list[list[float]]) -> str:
    """Draws the position table as a heat map: a row for a token, a column for a channel."""
    values = np.array(table)
    tokens, channels = values.shape
    limit = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    cell = max(min(18, 480 // tokens), 1)
    left, top, height = 10.0, 34, tokens * cell
    bottom = top + height
    parts = [
        f'<text class="axis" x="0" y="14">token ↓</text><text class="axis" x="{left}%" y="14">channel of the token →'
        "</text>",
        f'<image class="pixels" href="{png(heat(values, -limit, limit))}" x="{left}%" y="{top}" width="{100 - left}%" '
        f'height="{height}" preserveAspectRatio="none"/>',
        f'<text class="tick side" x="{left - 1.5}%" y="{top + cell / 2 + 4}">class</text>',
    ]
    for token in range(tokens // 4, tokens, max(tokens // 4, 1)):
        y = top + (token + 0.5) * cell + 4
        parts.append(f'<text class="tick side" x="{left - 1.5}%" y="{y}">{token}</text>')
    for channel in range(0, channels, max(channels // 6, 1)):
        x = left + (channel + 0.5) / channels * (100 - left)
        parts.append(f'<text class="tick" x="{x:.2f}%" y="{top - 6}">{channel}</text>')
    key = png(heat(np.linspace(-1, 1, 64)[None], -1, 1))
    parts += [
        f'<image href="{key}" x="{left}%" y="{bottom + 12}" width="30%" height="10" preserveAspectRatio="none"/>',
        f'<text class="tick side" x="{left - 1.5}%" y="{bottom + 21}">{-limit:.2g}</text>',
        f'<text class="axis" x="{left + 31.5}%" y="{bottom + 21}">{limit:.2g}</text>',
    ]
    described = f"{tokens} tokens down, {channels} channels across, values from {-limit:.2g} to {limit:.2g}"
    return _flexible("positions", "The position table", described, bottom + 30, parts)


def attention_figures(figures: dict[str, Any]) -> Iterator[str]:
    """Yields a strip for each image: the image, then the class token's attention in each head."""
    for image, label, heads in zip(figures["images"], figures["labels"], figures["weights"], strict=True):
        weights = np.array(heads)
        cell, step = 20, 22
        parts = [_image(png(paper(image)), 0, 0, cell, cell)]
        for number, weight in enumerate(weights, 1):
            x = number * step
            parts.append(_image(png(highlighted(image, weight)), x, 0, cell, cell, smooth=True))
            parts.append(f'<text class="plain small" x="{x}" y="{cell + 4.2}">{_percent(weight)}</text>')
        parts.append(f'<text class="plain small" x="0" y="{cell + 4.2}">digit {label}</text>')
        described = "; ".join(f"head {n}: {_percent(w)} on one patch" for n, w in enumerate(weights, 1))
        width = (len(weights) + 1) * step - 2
        yield _svg(f"attention-{label}", f"Attention over the digit {label}", described, width, cell + 6, parts)


def _percent(weights: np.ndarray) -> str:
    return f"{100 * weights.max():.0f}%" if np.isfinite(weights).all() else "not finite"


def losses_figure(torch_losses: list[float], flax_losses: list[float]) -> str:
    """Draws the loss curves of both frameworks on the same axes: torch's broad and pale, Flax's thin and dark."""
    finite = [loss for loss in (*torch_losses, *flax_losses) if math.isfinite(loss)]
    top, height, left, right = 28, 260, 9.0, 100.0
    steps = len(torch_losses)
    ticks = _round_ticks(max([*finite, 0.0]))
    parts = []

    def across(step: int) -> float:
        return round(left + 2 + (right - left - 4) * (step / (steps - 1) if steps > 1 else 0.5), 2)

    def down(loss: float) -> float:
        return round(top + height * (1 - loss / ticks[-1]), 2)

    for tick in ticks:
        y = down(tick)
        parts.append(f'<line class="grid" x1="{left}%" x2="{right}%" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick side" x="{left - 1.5}%" y="{y + 4}">{tick:g}</text>')
    for css, losses in (("torch", torch_losses), ("flax", flax_losses)):
        points = [(across(i), down(loss)) if math.isfinite(loss) else None for i, loss in enumerate(losses)]
        for start, end in itertools.pairwise(points):
            if start and end:
                ends = f'x1="{start[0]}%" y1="{start[1]}" x2="{end[0]}%" y2="{end[1]}"'
                parts.append(f'<line class="curve {css}" {ends}/>')
        radius = {"torch": 5, "flax": 2.4}[css]
        parts += [f'<circle class="{css}" cx="{p[0]}%" cy="{p[1]}" r="{radius}"/>' for p in points if p]
    for step in sorted({1, steps, *range(0, steps, max(round(steps / 5), 1))} - {0}):
        parts.append(f'<text class="tick" x="{across(step - 1)}%" y="{top + height + 20}">{step}</text>')
    parts.append(f'<text class="axis" x="{left}%" y="{top + height + 42}">optimiser step →</text>')
    parts.append('<text class="axis" x="0" y="12">loss ↑</text>')
    described = f"Losses of {plural(steps, 'step')}; the tables at the end hold every number"
    return _flexible("losses", "Loss curves of both frameworks", described, top + height + 48, parts)


def _round_ticks(largest: float) -> list[float]:
    """Returns a few round numbers from 0 to beyond `largest`."""
    if largest <= 0:
        return [0.0, 1.0]
    unit = 10.0 ** math.floor(math.log10(largest / 3))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor * 4 >= largest)
    return [round(step * i, 12) for i in range(math.ceil(largest / step) + 1)]


def _image(uri: str, x: float, y: float, width: float, height: float, smooth: bool = False) -> str:
    css = "smooth" if smooth else "pixels"
    place = f'x="{x}" y="{y}" width="{width}" height="{height}"'
    return f'<image class="{css}" href="{uri}" {place} preserveAspectRatio="none"/>'


def _svg(ident: str, title: str, described: str, width: float, height: float, parts: list[str]) -> str:
    """Returns an SVG that scales with its text."""
    return _named(ident, title, described, f'viewBox="0 0 {width:g} {height:g}"', parts)


def _flexible(ident: str, title: str, described: str, height: float, parts: list[str]) -> str:
    """Returns an SVG of full width in which horizontal positions scale and text does not."""
    return _named(ident, title, described, f'width="100%" height="{height:g}"', parts)


def _named(ident: str, title: str, described: str, size: str, parts: list[str]) -> str:
    return (
        f'<svg class="{ident.split("-")[0]}" role="img" aria-labelledby="{ident}-title {ident}-text" {size}>'
        f'<title id="{ident}-title">{title}</title><desc id="{ident}-text">{described}</desc>{"".join(parts)}</svg>'
    )
