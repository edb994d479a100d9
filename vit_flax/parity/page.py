"""The report as one self-contained HTML page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from html import escape
from pathlib import Path

from vit_flax.parity.compare import Row
from vit_flax.parity.page_errors import (
    ALLOWED,
    HIGHEST_DECADE,
    MARKS,
    error_chart,
    legend,
    lines_by_kind,
    lines_in_order,
)
from vit_flax.parity.page_figures import attention_figures, losses_figure, patches_figure, positions_figure
from vit_flax.parity.page_headline import headline, plain_verdict
from vit_flax.parity.page_numbers import plural, scientific, shape_text
from vit_flax.parity.page_tables import record
from vit_flax.parity.report import Report
from vit_flax.parity.tolerances import FLOAT32_FACTOR


def format_page(report: Report) -> str:
    """Returns the page as HTML without external resources or scripts."""
    style = Path(__file__).with_name("page.css").read_text("utf-8")
    body = itertools.chain(
        headline(report),
        _compared(report),
        _tokens(report),
        _positions(report),
        _components(report),
        _intermediates(report),
        _stressed(report),
        _gradients(report),
        _attention(report),
        _training(report),
        record(report),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{escape(plain_verdict(report))} – vit-flax compare</title>\n<style>\n{style}</style></head>\n"
        f"<body>{MARKS}<main>\n{chr(10).join(body)}\n</main></body></html>\n"
    )


def _compared(report: Report) -> Iterator[str]:
    yield '<section id="compared"><h2>What was compared</h2>'
    yield (
        f"<p>On one side a Vision Transformer written in PyTorch{_described(report.config)}; on the other the same "
        "model written in Flax linen, whose parameters were converted from the first: values are moved and turned, "
        "never computed. Both were given the same images. The output of every component was recorded on both sides "
        "and paired by name, in the order in which torch runs them; then the gradients; then training itself.</p>"
    )
    yield (
        "<p><strong>float64 decides.</strong> The difference of two arrays is the norm of their difference over the "
        "norm of torch’s. A right port differs by rounding alone, near 10⁻¹⁶ to 10⁻¹³, a wrong one by 10⁻⁷ or "
        f"more; {ALLOWED} separates them, and nothing is tuned. "
        "<strong>float32 follows</strong>, where both frameworks round, each in its own order: the error of each is "
        f"taken against torch’s float64, and Flax’s may be at most {FLOAT32_FACTOR:.0f} times torch’s.</p></section>"
    )


def _described(config: dict) -> str:
    try:
        return (
            f" ({shape_text(config['image_size'])} pixels in patches of {shape_text(config['patch_size'])}, "
            f"{plural(config['depth'], 'block')} of width {config['embed_dim']}, "
            f"{plural(config['num_heads'], 'head')}, {plural(config['num_classes'], 'class', 'classes')})"
        )
    except (KeyError, TypeError):  # a config of another kind
        return ""


def _tokens(report: Report) -> Iterator[str]:
    patches = report.figures.get("patches")
    if not patches:
        return
    size, token = patches["patch_size"], patches["token"]
    rows, columns = len(patches["image"]) // size, len(patches["image"][0]) // size
    yield '<section id="tokens"><h2>An image becomes tokens</h2>'
    yield _figure(
        patches_figure(patches),
        f"The worked example of the tutorial that the models follow: an image of {rows * size} × {columns * size} "
        f"pixels, cut into {rows * columns} patches of {size} × {size}, counted from 0 and row by row. Below, patch "
        f"{token} as the model gets it: its {size} rows laid end to end, {size * size} pixels in a line. Look for the "
        "same edge coming back once in every row. Reading the pixels column by column would be as good a strip and "
        "another model: that is one of the errors the comparison must catch.",
    )
    yield "</section>"


def _positions(report: Report) -> Iterator[str]:
    table = report.figures.get("position_table")
    if not table:
        return
    yield '<section id="positions"><h2>The position table</h2>'
    yield _figure(
        positions_figure(table),
        f"The fixed position table, added to the {len(table)} tokens: a row for each token, the class token first; a "
        f"column for each of {len(table[0])} channels. Sines and cosines alternate, fast on the left and slow on the "
        "right, so that no two rows are alike and neighbours are similar.",
    )
    yield "</section>"


def _components(report: Report) -> Iterator[str]:
    rows = report.sections.get("components")
    if rows:
        heading = "Every component, in order"
        chart = error_chart("components", heading, lines_in_order(rows), _first(report, "components"))
        yield f'<section id="components"><h2>{heading}</h2>{_chart(chart, rows, _how_to_read(rows))}</section>'


def _how_to_read(rows: list[Row]) -> str:
    if all(row.agrees for row in rows):
        seen = (
            "In float64 (diamonds) the frameworks differ by rounding only and stay left of the dashed line. In float32 "
            "(dots) the errors of both against float64 are those of the format, and alike."
        )
    else:
        seen = (
            "Black diamonds agree, coloured ones differ. The marked row is the first diverging component; the error "
            "propagates to those after it, so explain that row first."
        )
    off = any(not row.relative_difference <= 10.0**HIGHEST_DECADE for row in rows)
    beyond = " Those on the right are off the scale: huge, infinite or not numbers." if off else ""
    return (
        "Components in execution order from top to bottom; their difference to the right, on a log scale. "
        f"{seen} Hollow marks on the left are exactly 0, which has no place on a log scale.{beyond} The two dotted "
        "lines, ε, are what rounding a single number costs in each format."
    )


_BY_KIND = " A line shows all blocks, the first uppermost; the tables at the end name every mark."


def _intermediates(report: Report) -> Iterator[str]:
    yield from _kinds(
        report,
        "intermediates",
        "Intermediate features",
        "The patch tokens after every block and, separately, the prefix tokens, both with and without the final norm, "
        "and the attention weights.",
    )


def _stressed(report: Report) -> Iterator[str]:
    yield from _kinds(
        report,
        "stressed",
        "Components at a large mean",
        "The components again, after a large constant was added to the tokens, so that every LayerNorm sees a mean far "
        "above the standard deviation. A variance computed as the mean of squares less the square of the mean loses "
        "its digits here; small activations would not show it.",
    )


def _gradients(report: Report) -> Iterator[str]:
    yield from _kinds(
        report,
        "gradients",
        "Gradients",
        "A forward pass may be right and its derivative wrong. These are the gradients of the image and of every "
        "parameter, for one random cotangent of the output. Some are 0 in exact arithmetic (softmax ignores a "
        "constant, so a key’s bias has no effect): those are judged against the largest.",
    )


def _kinds(report: Report, section: str, heading: str, caption: str) -> Iterator[str]:
    rows = report.sections.get(section)
    if rows:
        chart = error_chart(section, f"{heading}: errors", lines_by_kind(rows), _first(report, section))
        yield f'<section id="{section}"><h2>{heading}</h2>{_chart(chart, rows, caption + _BY_KIND)}</section>'


def _attention(report: Report) -> Iterator[str]:
    attention = report.figures.get("attention")
    if not attention:
        return
    heads, rows = len(attention["weights"][0]), attention["weights"][0][0]
    yield '<section id="attention"><h2>Where the class token looks</h2>'
    yield _figure(
        f'<div class="strips">{"".join(attention_figures(attention))}</div>',
        f"Some of the images, and beside each the class token's attention in the last block, in heads 1 to {heads} "
        f"from left to right: the greener, the more attention. The weights lie on {len(rows)} × {len(rows[0])} patches "
        "and are enlarged smoothly; each map is scaled to its own largest weight, and the number says how much of the "
        "attention that one patch gets. "
        "Look for heads that keep to one part of the image and for heads that follow the ink.",
    )
    yield "</section>"


def _training(report: Report) -> Iterator[str]:
    if not report.torch_losses:
        return
    yield '<section id="training"><h2>Training side by side</h2>'
    yield (
        '<p class="legend"><span><i class="swatch torch"></i>torch’s loss, broad and pale</span>'
        '<span><i class="swatch flax"></i>Flax’s loss, thin and dark</span></p>'
    )
    differences = [abs(a - b) for a, b in zip(report.torch_losses, report.flax_losses, strict=True)]
    worst = max(differences, key=lambda value: math.inf if math.isnan(value) else value)
    yield _figure(
        losses_figure(report.torch_losses, report.flax_losses),
        f"{plural(len(differences), 'step')} of AdamW in float64 on the same batches, each framework by its own "
        "autodiff and its own optimiser. The thin line should run inside the broad one. The largest difference "
        f"between the two losses is <strong>{scientific(worst)}</strong>, at step {differences.index(worst) + 1}.",
    )
    yield "</section>"
    yield from _kinds(
        report,
        "steps",
        "Losses and parameters after training",
        "The losses, and every parameter after the last step. AdamW divides each gradient by the root of its second "
        "moment, so a gradient that is 0 but for rounding still moves its parameter: expect a few marks, key biases, "
        "to the right of the rest.",
    )


def _first(report: Report, section: str) -> str | None:
    first = report.first_divergence
    return first[1] if first is not None and first[0] == section else None


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"


def _chart(drawing: str, rows: list[Row], caption: str) -> str:
    # the chart is tall, so the caption stands above it
    return f"<figure><figcaption>{caption}</figcaption>{legend(rows)}{drawing}</figure>"
