"""The top of the page: the verdict in one sentence, and a few numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from html import escape

from vit_flax.parity.compare import Row
from vit_flax.parity.mutations import MUTATIONS
from vit_flax.parity.page_errors import ALLOWED, reason
from vit_flax.parity.page_numbers import scientific
from vit_flax.parity.page_tables import verdict
from vit_flax.parity.report import Report
from vit_flax.parity.tolerances import FLOAT64_RELATIVE

# The verdict of a first divergence by its section; the row's name follows.
_PARTING = {
    "components": "The two models differ, first in ",
    "intermediates": "The two models differ in their intermediate features, first in ",
    "stressed": "The two models differ once activations have a large mean, first in ",
    "gradients": "The two models differ in their gradients, first in that of ",
    "steps": "The two models differ in training, first in ",
    "outputs": "The two models differ in their outputs, first in ",
}


def plain_verdict(report: Report) -> str:
    """Returns the verdict in one sentence."""
    first = report.first_divergence
    if report.agrees:
        return "The two models are the same."
    if first is not None:
        return f"{_PARTING[first[0]]}{first[1]}."
    if not any(report.sections.values()):
        return "Nothing was compared."
    return "The two models differ."


def headline(report: Report) -> Iterator[str]:
    """Yields the verdict, the first divergence and a few numbers."""
    first = report.first_divergence
    text = escape(plain_verdict(report))
    if first is not None:
        text = f"{_PARTING[first[0]]}<code>{escape(first[1]).replace('.', '.<wbr>')}</code>"
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
            '<p class="notice">This comparison was asked to fail. The error put into the Flax side on purpose is '
            f"<code>{escape(report.mutation)}</code>{meaning}.</p>"
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
    where_to_look = ""
    if place and section in ("components", "stressed"):
        row = rows[place - 1]
        where_to_look = f" What runs just before it, <code>{escape(row.name)}</code>, still agrees"
        where_to_look += f" ({scientific(row.relative_difference)})." if row.relative_difference else " exactly."
    if section == "gradients":
        last = [row.name for row in rows if not row.agrees][-1]
        where_to_look = (
            " Gradients flow from the end of the model back to the image: look first at the last row that differs, "
            f"<code>{escape(last)}</code>."
        )
    yield (
        f'<p class="notice"><a href="#{section}-first"><strong>First to differ</strong></a>, among the '
        f"{_SECTION_WORDS[section]}: <code>{escape(name)}</code>, in Flax "
        f"<code>{escape(rows[place].flax_name)}</code>: {escape(reason(rows[place]))}.{where_to_look}</p>"
    )


_SECTION_WORDS = {
    "components": "components",
    "intermediates": "intermediate features",
    "stressed": "components given activations of a large mean",
    "gradients": "gradients",
    "steps": "losses and parameters after the optimiser steps",
    "outputs": "outputs",
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
        yield _number(scientific(worst), f"largest difference in float64 (allowed: {ALLOWED})", fits)


def _number(value: str, label: str, holds: bool) -> str:
    return f'<li class="{"holds" if holds else "fails"}"><strong>{value}</strong> <span>{escape(label)}</span></li>'


def _worst(rows: list[Row]) -> float:
    """Returns the largest relative difference, or NaN if any is.

    Rows that agree although they are above the tolerance are left out: they are zero in exact arithmetic, so their
    relative difference means nothing.
    """
    values = [r.relative_difference for r in rows if not (r.agrees and r.relative_difference > FLOAT64_RELATIVE)]
    return max(values, key=lambda value: math.inf if math.isnan(value) else value, default=0.0)
