"""Dot plots of the errors on a log scale, a row for a component, of any width with text of one size."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from html import escape

from vit_flax.parity.compare import Row
from vit_flax.parity.page_numbers import power_of_ten, scientific
from vit_flax.parity.tolerances import FLOAT32_EPS, FLOAT32_FACTOR, FLOAT64_EPS, FLOAT64_RELATIVE

# Across, in percent of the width: end of the labels, lane of exact zeros, the scale, lane of values off the scale.
LABELS, ZERO, SCALE, OFF = 33.0, 37.5, (42.0, 93.0), 97.0
# Down, in pixels.
TOP, ROW, HEADING, NOTE, BOTTOM = 56, 21, 32, 26, 30
HIGHEST_DECADE = 2  # larger values tell no more: they go off the scale
LONGEST_LABEL = 21
_TOLERANCE_DECADE = round(math.log10(FLOAT64_RELATIVE))
ALLOWED = power_of_ten(_TOLERANCE_DECADE)

# The marks, drawn once for the page; charts place them with <use>, which takes percentages where paths do not.
MARKS = (
    '<svg class="marks" width="0" height="0" aria-hidden="true"><defs>'
    + "".join(
        f'<g id="torch{size}"><circle r="{5 * scale:g}"/></g><g id="flax{size}"><circle r="{3.4 * scale:g}"/></g>'
        f'<g id="double{size}"><path transform="scale({scale})" d="M0 -5.4 4.4 0 0 5.4 -4.4 0Z"/></g>'
        for size, scale in (("", 1), ("-small", 0.72))
    )
    + "</defs></svg>"
)


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart and its rows: a single one, or the same component of every block."""

    group: str
    label: str
    rows: tuple[Row, ...]


def lines_in_order(rows: Iterable[Row]) -> list[Line]:
    """Returns a line for every row, grouped by block."""
    return [Line(*_split(row.name), (row,)) for row in rows]


def lines_by_kind(rows: Iterable[Row]) -> list[Line]:
    """Returns a line for all rows whose names differ only in numbers."""
    kinds: dict[str, list[Row]] = {}
    blocks: dict[str, list[str]] = {}
    for row in rows:
        kinds.setdefault(_kind(row.name), []).append(row)
        group = _split(row.name)[0]
        blocks.setdefault(_kind(group), []).append(group)
    lines = []
    for same in kinds.values():
        group, label = _split(same[0].name)
        first, last = blocks[_kind(group)][0], blocks[_kind(group)][-1]
        lines.append(Line(first if first == last else f"{first} … {_number(last)}", label, tuple(same)))
    return lines


def _kind(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=[.:]|$)", "*", name)


def _number(group: str) -> str:
    return group.rsplit(".", 1)[-1]


def _split(name: str) -> tuple[str, str]:
    """Returns a component's block, "" outside the blocks, and its short name within."""
    found = re.match(r"(.*?\.\d+)(?:[.:]|$)(.*)", name)
    group, rest = found.groups() if found else ("", name)
    if group and not rest:
        rest = "its output"
    elif group and rest == "input":
        rest = "its input"
    label = rest.replace(":", ", ")
    if len(label) > LONGEST_LABEL:
        label = ".".join(label.split(".")[-2:])
    return group, label if len(label) <= LONGEST_LABEL else "…" + label[1 - LONGEST_LABEL :]


def reason(row: Row) -> str:
    """Says why a row disagrees."""
    if math.isnan(row.relative_difference):
        return "one side holds values that are not numbers"
    if math.isinf(row.relative_difference):
        return "another shape, or values that overflow"
    if row.relative_difference > FLOAT64_RELATIVE or not row.torch_float32_error:
        return f"{scientific(row.relative_difference)} in float64, {ALLOWED} allowed"
    times = (row.flax_float32_error or 0.0) / row.torch_float32_error
    times_text = f"{times:,.0f}" if times < 1e6 else scientific(times)
    return f"its float32 error is {times_text} times torch’s, {FLOAT32_FACTOR:.0f} allowed"


def legend(rows: Iterable[Row]) -> str:
    """Returns the legend of the marks that these rows have."""
    shown = {kind for row in rows for kind, _ in _values(row)}
    items = "".join(
        '<span><svg width="14" height="14" viewBox="-7 -7 14 14" aria-hidden="true">'
        f'<use class="{kind}" href="#{kind}"/></svg>{name}</span>'
        for kind, name in _NAMES.items()
        if kind in shown
    )
    return f'<p class="legend">{items}</p>'


def error_chart(ident: str, title: str, lines: list[Line], first: str | None) -> str:
    """Draws the errors of all lines.

    Args:
        ident: prefix of the ids of the chart's elements.
        title: the SVG's title, for screen readers.
        lines: from top to bottom.
        first: name of the row that disagrees first in the report, if it is in this chart.
    """
    scale = _Scale([row for line in lines for row in line.rows])
    size = "-small" if any(len(line.rows) > 1 for line in lines) else ""
    bands, body = [], []
    y, group = TOP, None
    for line in lines:
        if line.group != group and (line.group or group):
            rule = y + HEADING - 24
            body.append(f'<line class="rule" x1="0" x2="100%" y1="{rule}" y2="{rule}"/>')
            body.append(f'<text class="group" x="0" y="{y + HEADING - 8}">{escape(line.group)}</text>')
            y += HEADING if line.group else HEADING - 14
        group = line.group
        marked = next((row for row in line.rows if row.name == first), None)
        if marked is not None:
            place = f'x="0" width="100%" y="{y}" height="{ROW + NOTE}"'
            bands.append(f'<rect class="band" id="{ident}-first" {place}/>')
            note = escape(_first_note(marked, line))
            body.append(f'<text class="note" x="6" y="{y + ROW + 14}">▲ {note}</text>')
        css = "label first" if marked else "label"
        body.append(f'<text class="{css}" x="{LABELS}%" y="{y + ROW / 2 + 4:g}">{escape(line.label)}</text>')
        body.append(f'<line class="guide" x1="{LABELS + 1}%" x2="100%" y1="{y + ROW / 2}" y2="{y + ROW / 2}"/>')
        for row, offset in zip(line.rows, _offsets(len(line.rows)), strict=True):
            body += scale.marks(row, y + ROW / 2 + offset, size)
        y += ROW + (NOTE if marked else 0)
    count = sum(len(line.rows) for line in lines)
    differing = sum(not row.agrees for line in lines for row in line.rows)
    described = f"{count} rows, {differing} of them beyond what is allowed. The tables at the end hold every number."
    return (
        f'<svg class="chart" role="img" aria-labelledby="{ident}-title {ident}-text" width="100%" '
        f'height="{y + BOTTOM}"><title id="{ident}-title">{escape(title)}</title>'
        f'<desc id="{ident}-text">{described}</desc>{"".join((*bands, *scale.grid(y), *body))}</svg>'
    )


def _first_note(row: Row, line: Line) -> str:
    group = _split(row.name)[0]
    where = f" (in {group})" if len(line.rows) > 1 else ""
    return f"first to differ{where}: {reason(row)}"


def _offsets(count: int) -> list[float]:
    """Returns the vertical offsets, in pixels, of several rows on one line."""
    step = min(3.6, (ROW - 8) / max(count - 1, 1))
    return [round((i - (count - 1) / 2) * step, 1) for i in range(count)]


class _Scale:
    """The horizontal log scale, from the rows' values, the tolerance and both machine epsilons."""

    def __init__(self, rows: list[Row]) -> None:
        values = [value for row in rows for _, value in _values(row)]
        decades = [math.log10(value) for value in values if 0 < value < math.inf]
        self.low = max(min([math.floor(d) for d in decades] + [-17]), -20)
        self.high = min(max([math.ceil(d) for d in decades] + [-5]), HIGHEST_DECADE)
        self.any_off = any(not value <= 10.0**self.high for value in values)  # NaN too

    def place(self, value: float) -> float:
        """Returns a value's horizontal position, in percent."""
        if value == 0:
            return ZERO
        if not value <= 10.0**self.high:
            return OFF
        share = max(math.log10(value) - self.low, 0) / (self.high - self.low)
        return round(SCALE[0] + share * (SCALE[1] - SCALE[0]), 2)

    def marks(self, row: Row, y: float, size: str) -> Iterator[str]:
        values = dict(_values(row))
        spoken = ", ".join(f"{_NAMES[kind]} {scientific(value)}" for kind, value in values.items())
        yield f"<g><title>{escape(row.name)}: {spoken}{'' if row.agrees else ' (differs)'}</title>"
        if "torch" in values:
            ends = [self.place(values[kind]) for kind in ("torch", "flax")]
            yield f'<line class="pair" x1="{ends[0]}%" x2="{ends[1]}%" y1="{y}" y2="{y}"/>'
        for kind, value in values.items():
            css = kind + (" open" if self.place(value) in (ZERO, OFF) else "")
            stands_out = kind == "double" and not row.agrees
            css += " differs" if stands_out else ""
            yield f'<use class="{css}" href="#{kind}{"" if stands_out else size}" x="{self.place(value)}%" y="{y}"/>'
        yield "</g>"

    def grid(self, bottom: int) -> Iterator[str]:
        """Yields the vertical lines and their labels, above and below the rows."""
        every = 3 if self.high - self.low <= 15 else 6
        decades = [d for d in range(self.low, self.high + 1) if (d - _TOLERANCE_DECADE) % every == 0]
        if self.any_off and decades[-1] == self.high:
            decades.pop()  # its label would touch that of the lane beside it
        ticks = {self.place(10.0**d): power_of_ten(d) for d in decades}
        yield from (_upright("grid", x, TOP - 4, bottom + 4) for x in ticks)
        lanes = {ZERO: "0"} | ({OFF: "off"} if self.any_off else {})
        yield from (_upright("lane", x, TOP - 4, bottom + 4) for x in lanes)
        for name, value in (("ε float64", FLOAT64_EPS), ("ε float32", FLOAT32_EPS)):
            yield _upright("epsilon", self.place(value), 18, bottom + 4)
            yield _text("tick", self.place(value), 12, name)
        allowed = self.place(FLOAT64_RELATIVE)
        yield _upright("tolerance", allowed, TOP - 4, bottom + 4) + _text("tick strong", allowed, 30, "allowed")
        for x, text in (ticks | lanes).items():
            css = "tick strong" if x == allowed else "tick"
            yield _text(css, x, 46, text) + _text(css, x, bottom + 20, text)


_NAMES = {"double": "float64 difference", "torch": "torch’s float32 error", "flax": "Flax’s float32 error"}


def _values(row: Row) -> Iterator[tuple[str, float]]:
    if row.torch_float32_error is not None and row.flax_float32_error is not None:
        yield "torch", row.torch_float32_error
    yield "double", row.relative_difference
    if row.torch_float32_error is not None and row.flax_float32_error is not None:
        yield "flax", row.flax_float32_error  # last and smallest: visible on top of the others


def _upright(css: str, x: float, top: int, bottom: int) -> str:
    return f'<line class="{css}" x1="{x}%" x2="{x}%" y1="{top}" y2="{bottom}"/>'


def _text(css: str, x: float, y: int, text: str) -> str:
    return f'<text class="{css}" x="{x}%" y="{y}">{text}</text>'
