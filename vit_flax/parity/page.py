"""The report as one self-contained HTML page."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

from vit_flax.parity.compare import Row
from vit_flax.parity.mutations import MUTATIONS
from vit_flax.parity.page_errors import MARKS, error_chart, lines_by_kind, lines_in_order, reason
from vit_flax.parity.page_figures import attention_figures, losses_figure, patches_figure, positions_figure
from vit_flax.parity.page_numbers import plural, power_of_ten, scientific, shape_text
from vit_flax.parity.page_tables import record, verdict
from vit_flax.parity.report import Report
from vit_flax.parity.tolerances import FLOAT32_FACTOR, FLOAT64_RELATIVE

LEGEND = (
    '<p class="legend">'
    '<span><svg width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true"><use class="double" href="#double"/>'
    "</svg>float64 difference</span>"
    '<span><svg width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true"><use class="torch" href="#torch"/>'
    "</svg>torch’s float32 error</span>"
    '<span><svg width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true"><use class="flax" href="#flax"/>'
    "</svg>Flax’s float32 error</span></p>"
)


def format_page(report: Report) -> str:
    """Returns the page: HTML that needs nothing outside itself, neither network nor scripts."""
    style = Path(__file__).with_name("page.css").read_text("utf-8")
    body = itertools.chain(
        _headline(report),
        _compared(report),
        _tokens(report),
        _positions(report),
        _components(report),
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
        f"<title>{escape(_plain_verdict(report))} – vit-flax compare</title>\n<style>\n{style}</style></head>\n"
        f"<body>{MARKS}<main>\n{chr(10).join(body)}\n</main></body></html>\n"
    )


def _plain_verdict(report: Report) -> str:
    first = report.first_divergence
    if report.agrees:
        return "The two models are the same."
    if first is not None:
        return f"The two models differ, first in {first[1]}."
    if not any(report.sections.values()):
        return "Nothing was compared."
    return "The two models differ."


def _headline(report: Report) -> Iterator[str]:
    text = escape(_plain_verdict(report))
    first = report.first_divergence
    if first is not None:
        name = escape(first[1])
        text = text.replace(name, f"<code>{name.replace('.', '.<wbr>')}</code>")
    state = "same" if report.agrees else "different"
    yield f'<header class="{state}"><p class="eyebrow">vit-flax compare</p><h1>{text}</h1>'
    yield f'<p class="lead">{escape(report.title)}.</p>'
    yield from _divergence(report)
    yield '<ul class="numbers">' + "".join(_numbers(report)) + "</ul></header>"


def _divergence(report: Report) -> Iterator[str]:
    if report.mutation:
        known = MUTATIONS.get(report.mutation)
        meaning = f": {escape(known.description)}" if known else ""
        yield (
            f'<p class="notice">This comparison was asked to fail: a deliberate error, '
            f"<code>{escape(report.mutation)}</code>{meaning}, was put into the Flax side.</p>"
        )
    first = report.first_divergence
    if first is None:
        wrong = [check.text for check in (*report.checks, *report.worked_example) if not check.agrees]
        if wrong:
            yield f'<ul class="notice">{"".join(f"<li>{verdict(False)} {escape(text)}</li>" for text in wrong)}</ul>'
        return
    section, name = first
    rows = report.sections[section]
    place = next(i for i, row in enumerate(rows) if row.name == name)
    before = ""
    if place and section in ("components", "stressed"):
        row = rows[place - 1]
        before = f" What runs just before it, <code>{escape(row.name)}</code>, still agrees"
        before += f" ({scientific(row.relative_difference)})." if row.relative_difference else " exactly."
    yield (
        f'<p class="notice"><a href="#{section}-first"><strong>First to differ</strong></a>, among the '
        f"{_SECTION_WORDS[section]}: <code>{escape(name)}</code>, in Flax "
        f"<code>{escape(rows[place].flax_name)}</code>: {escape(reason(rows[place]))}.{before}</p>"
    )


_SECTION_WORDS = {
    "components": "components",
    "stressed": "components given activations of a large mean",
    "gradients": "gradients",
    "steps": "losses and parameters after the optimiser steps",
}


def _numbers(report: Report) -> Iterator[str]:
    """Yields the headline's numbers."""
    for section in ("components", "gradients"):
        rows = report.sections.get(section)
        if rows:
            agreeing = sum(row.agrees for row in rows)
            yield _number(f"{agreeing}", f"of {len(rows)} {section} agree", agreeing == len(rows))
    steps = report.sections.get("steps")
    if steps:
        agreeing = sum(row.agrees for row in steps)
        what = "with equal losses and parameters" if agreeing == len(steps) else "that part ways"
        count = len(report.torch_losses)
        yield _number(f"{count:,}", f"AdamW step{'s' * (count != 1)} {what}", agreeing == len(steps))
    for check in report.checks:
        found = re.match(r"([\d,]+) of ([\d,]+) (\w+) get the same label", check.text)
        if found:
            yield _number(found[1], f"of {found[2]} {found[3]} labelled equal", check.agrees)
    rows = [row for section in report.sections.values() for row in section]
    if rows:
        worst = _worst(rows)
        fits = worst <= FLOAT64_RELATIVE
        yield _number(scientific(worst), f"largest float64 difference; {power_of_ten(-9)} is allowed", fits)


def _number(value: str, label: str, holds: bool) -> str:
    return f'<li class="{"holds" if holds else "fails"}"><strong>{value}</strong> <span>{escape(label)}</span></li>'


def _worst(rows: list[Row]) -> float:
    """Returns the largest relative difference, NaN if there is one.

    Leaves out rows that agree though they are above the tolerance: they are zero in exact arithmetic, so that their
    difference relative to themselves means nothing.
    """
    values = [r.relative_difference for r in rows if not (r.agrees and r.relative_difference > FLOAT64_RELATIVE)]
    return max(values, key=lambda value: math.inf if math.isnan(value) else value, default=0.0)


def _compared(report: Report) -> Iterator[str]:
    yield '<section id="compared"><h2>What was compared</h2>'
    yield (
        f"<p>On one side a Vision Transformer written in PyTorch{_described(report.config)}; on the other the same model "
        "written in Flax linen, whose parameters were converted from the first: values are moved and turned, never "
        "computed. Both were given the same images. What every component puts out was recorded on both sides and "
        "paired by name, in the order in which torch runs them; then the gradients; then training itself.</p>"
    )
    yield (
        "<p><strong>float64 decides.</strong> The difference of two arrays is the norm of what lies between them over "
        f"the norm of torch’s. A right port differs by rounding alone, near 10⁻¹⁶ to 10⁻¹³, a wrong one by 10⁻⁷ or more; "
        f"{power_of_ten(-9)} separates them, and nothing is tuned. "
        "<strong>float32 follows</strong>, where both frameworks round and each in its own order: the error of "
        f"each is taken against torch’s float64, and Flax’s may be at most {FLOAT32_FACTOR:.0f} times torch’s.</p></section>"
    )


def _described(config: dict) -> str:
    try:
        return (
            f" ({shape_text(config['image_size'])} pixels in patches of {shape_text(config['patch_size'])}, "
            f"{plural(config['depth'], 'block')} of width {config['embed_dim']}, "
            f"{plural(config['num_heads'], 'head')}, {plural(config['num_classes'], 'class').replace('sss', 'sses')})"
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
    yield '<section id="positions"><h2>Where a token sits</h2>'
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
        yield '<section id="components"><h2>Every component, in order</h2>' + LEGEND
        yield _figure(
            error_chart("components", "Errors of every component", lines_in_order(rows), _first(report, "components")),
            "From top to bottom as the model runs, from left to right how far apart, a step of the scale being a "
            "factor of ten. "
            + _seen(rows)
            + " The two lines marked ε are the rounding of one operation. Hollow marks on the left are exactly 0, which "
            "a log scale cannot hold"
            + (
                "; hollow marks on the right are off the scale, infinite or not numbers."
                if any(not math.isfinite(r.relative_difference) for r in rows)
                else "."
            ),
        )
        yield "</section>"


def _seen(rows: list[Row]) -> str:
    if all(row.agrees for row in rows):
        return (
            "In float64 (diamonds) the frameworks part by rounding only and stay left of the dashed line, 10⁻⁹. In "
            "float32 (dots) both are as far from the truth as that format must be, and equally far."
        )
    return (
        "Ink diamonds agree, the others differ. The marked row is where the error enters; what comes after it "
        "inherits it, so read no further down before that row is explained."
    )


_BY_KIND = (
    " A line shows all blocks, the first uppermost; rest the pointer on a mark, or open the table at the end, for its name."
)


def _stressed(report: Report) -> Iterator[str]:
    yield from _kinds(
        report,
        "stressed",
        "The same under stress",
        "The components again, after 256 was added to the activations that every normalisation sees. A variance "
        "computed the quick way, mean of squares less square of mean, loses all its digits here; with small "
        "activations nobody would notice.",
    )


def _gradients(report: Report) -> Iterator[str]:
    yield from _kinds(
        report,
        "gradients",
        "Gradients",
        "A forward pass may be right and its derivative wrong. These are the gradients of the image and of every "
        "parameter, for one random direction of the output. Some are 0 in exact arithmetic (softmax ignores a "
        "constant, so a key’s bias has no effect): those are judged against the largest.",
    )


def _kinds(report: Report, section: str, heading: str, caption: str) -> Iterator[str]:
    rows = report.sections.get(section)
    if rows:
        chart = error_chart(section, f"{heading}: errors", lines_by_kind(rows), _first(report, section))
        yield f'<section id="{section}"><h2>{heading}</h2>{LEGEND}{_figure(chart, caption + _BY_KIND)}</section>'


def _attention(report: Report) -> Iterator[str]:
    attention = report.figures.get("attention")
    if not attention:
        return
    heads = len(attention["weights"][0])
    yield '<section id="attention"><h2>Where the class token looks</h2>'
    yield _figure(
        f'<div class="strips">{"".join(attention_figures(attention))}</div>',
        f"Ten of the images, and beside each what the class token draws on in the last block, for each of the {heads} "
        "heads: the greener, the more attention. The weights are on a grid of "
        f"{len(attention['weights'][0][0])} × {len(attention['weights'][0][0][0])} patches, enlarged smoothly; each map "
        "is scaled to its own largest weight, and the number says how much of the attention that one patch gets. "
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
        "What training leaves behind",
        "The losses, and every parameter after the last step. AdamW divides each gradient by its own size, so a "
        "gradient that is 0 but for rounding still moves its parameter: expect a few marks, key biases, to the right "
        "of the rest.",
    )


def _first(report: Report, section: str) -> str | None:
    first = report.first_divergence
    return first[1] if first is not None and first[0] == section else None


def _figure(drawing: str, caption: str) -> str:
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"
