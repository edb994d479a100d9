"""Dot plots of the errors on a log scale, a row for a component, drawn to any width without scaling their text."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator
from html import escape

from vit_flax.parity.compare import Row
from vit_flax.parity.page_numbers import power_of_ten, scientific
from vit_flax.parity.tolerances import FLOAT32_EPS, FLOAT32_FACTOR, FLOAT64_EPS, FLOAT64_RELATIVE

# Across, in percent of the width: labels end, a lane for exact zeros, the scale, a lane for what is off it.
LABELS, ZERO, SCALE, OFF = 37.0, 41.5, (46.0, 92.0), 96.5
# Down, in pixels.
TOP, ROW, HEADING, NOTE, BOTTOM = 56, 21, 32, 26, 30
HIGHEST_DECADE = 3  # larger values tell no more: they go off the scale
LONGEST_LABEL = 24

# The marks, drawn once for the page; charts place them with <use>, which takes percentages where paths do not.
MARKS = """<svg class="marks" width="0" height="0" aria-hidden="true"><defs>
<circle id="torch" r="4.6"/><circle id="flax" r="2.9"/><path id="double" d="M0 -5.4 4.4 0 0 5.4 -4.4 0Z"/>
</defs></svg>"""


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of a chart: the rows whose marks it shows, one or (a kind of component) one for each block."""

    group: str
    label: str
    rows: tuple[Row, ...]


def lines_in_order(rows: Iterable[Row]) -> list[Line]:
    """Returns a line for every row, grouped by block."""
    return [Line(*_split(row.name), (row,)) for row in rows]


def lines_by_kind(rows: Iterable[Row]) -> list[Line]:
    """Returns a line for every kind of row, that is for all names which differ only in numbers."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(re.sub(r"(?<=\.)\d+(?=[.:]|$)", "*", row.name), []).append(row)
    lines = []
    for same in kinds.values():
        (first, label), (last, _) = _split(same[0].name), _split(same[-1].name)
        group = first if first == last else f"{first} … {last.rsplit('.', 1)[-1]}"
        lines.append(Line(group, label, tuple(same)))
    return lines


def _split(name: str) -> tuple[str, str]:
    """Returns the numbered part that a component is in, if any, and a short name of the component within."""
    found = re.match(r"(.*?\.\d+)(?:[.:]|$)(.*)", name)
    group, rest = found.groups() if found else ("", ".".join(name.split(".")[-2:]))
    if group and not rest:
        rest = "its output"
    elif group and rest == "input":
        rest = "its input"
    label = rest.replace(":", ", ")
    return group, label if len(label) <= LONGEST_LABEL else "…" + label[1 - LONGEST_LABEL :]


def reason(row: Row) -> str:
    """Says why a row disagrees."""
    if math.isnan(row.relative_difference):
        return "one side holds values that are not numbers"
    if math.isinf(row.relative_difference):
        return "another shape, or values that overflow"
    if row.relative_difference > FLOAT64_RELATIVE or not row.torch_float32_error:
        return f"{scientific(row.relative_difference)} in float64, {power_of_ten(-9)} allowed"
    times = (row.flax_float32_error or 0.0) / row.torch_float32_error
    times_text = f"{times:,.0f}" if times < 1e6 else scientific(times)
    return f"its float32 error is {times_text} times torch’s, {FLOAT32_FACTOR:.0f} allowed"


def error_chart(ident: str, title: str, lines: list[Line], first: str | None) -> str:
    """Draws the errors of all lines.

    Args:
        ident: begins the ids of the chart's elements.
        title: what a screen reader says the chart is.
        lines: from top to bottom.
        first: name of the row that disagrees first in the report, if it is in this chart.
    """
    scale = _Scale([row for line in lines for row in line.rows])
    body: list[str] = []
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
            body.append(
                f'<rect class="band" id="{ident}-first" x="0" width="100%" y="{y}" height="{ROW + NOTE}"/>'
                f'<text class="note" x="6" y="{y + ROW + 14}">▲ '
                f"{escape(_first_note(marked, line))}</text>"
            )
        css = "label first" if marked else "label"
        body.append(f'<text class="{css}" x="{LABELS}%" y="{y + ROW / 2 + 4:g}">{escape(line.label)}</text>')
        body.append(f'<line class="guide" x1="{SCALE[0]}%" x2="{SCALE[1]}%" y1="{y + ROW / 2}" y2="{y + ROW / 2}"/>')
        for row, offset in zip(line.rows, _offsets(len(line.rows)), strict=True):
            body += scale.marks(row, y + ROW / 2 + offset)
        y += ROW + (NOTE if marked else 0)
    count = sum(len(line.rows) for line in lines)
    differing = sum(not row.agrees for line in lines for row in line.rows)
    described = f"{count} rows, {differing} of them beyond what is allowed. The tables at the end hold every number."
    return (
        f'<svg class="chart" role="img" aria-labelledby="{ident}-title {ident}-text" width="100%" '
        f'height="{y + BOTTOM}"><title id="{ident}-title">{escape(title)}</title>'
        f'<desc id="{ident}-text">{described}</desc>{"".join(scale.grid(y))}{"".join(body)}</svg>'
    )


def _first_note(row: Row, line: Line) -> str:
    group = _split(row.name)[0]
    where = f" ({group.rsplit('.', 1)[-1]})" if len(line.rows) > 1 else ""
    return f"first to differ{where}: {reason(row)}"


def _offsets(count: int) -> list[float]:
    """Returns how far above or below the middle of its line each of several rows is drawn."""
    step = min(3.0, (ROW - 9) / max(count - 1, 1))
    return [round((i - (count - 1) / 2) * step, 1) for i in range(count)]


class _Scale:
    """The log scale across, wide enough for the rows and always for the tolerance and both roundings."""

    def __init__(self, rows: list[Row]) -> None:
        values = [value for row in rows for _, value in _values(row)]
        decades = [math.log10(value) for value in values if 0 < value < math.inf]
        self.low = max(min([math.floor(d) for d in decades] + [-17]), -20)
        self.high = min(max([math.ceil(d) for d in decades] + [-5]), HIGHEST_DECADE)
        self.any_off = any(not value <= 10.0**self.high for value in values)  # NaN too

    def place(self, value: float) -> float:
        """Returns where a value lies across, in percent."""
        if value == 0:
            return ZERO
        if not value <= 10.0**self.high:
            return OFF
        share = max(math.log10(value) - self.low, 0) / (self.high - self.low)
        return round(SCALE[0] + share * (SCALE[1] - SCALE[0]), 2)

    def marks(self, row: Row, y: float) -> Iterator[str]:
        values = dict(_values(row))
        spoken = ", ".join(f"{_NAMES[kind]} {scientific(value)}" for kind, value in values.items())
        yield f"<g><title>{escape(row.name)}: {spoken}{'' if row.agrees else ' (differs)'}</title>"
        if "torch" in values:
            ends = [self.place(values[kind]) for kind in ("torch", "flax")]
            yield f'<line class="pair" x1="{ends[0]}%" x2="{ends[1]}%" y1="{y}" y2="{y}"/>'
        for kind, value in values.items():
            css = kind + (" open" if self.place(value) in (ZERO, OFF) else "")
            css += " differs" if kind == "double" and not row.agrees else ""
            yield f'<use class="{css}" href="#{kind}" x="{self.place(value)}%" y="{y}"/>'
        yield "</g>"

    def grid(self, bottom: int) -> Iterator[str]:
        yield _text("tick", ZERO, 46, "0") + _text("tick", ZERO, bottom + 18, "0")
        yield _upright("lane", ZERO, TOP - 4, bottom + 4)
        for decade in range(self.low, self.high + 1):
            x = self.place(10.0**decade)
            if decade % 3 == 0:
                yield _upright("grid", x, TOP - 4, bottom + 4)
                for y in (46, bottom + 18):
                    yield _text("tick", x, y, power_of_ten(decade))
        if self.any_off:
            yield _upright("lane", OFF, TOP - 4, bottom + 4)
            yield _text("tick", OFF, 46, "off") + _text("tick", OFF, bottom + 18, "off")
        for name, value in (("ε float64", FLOAT64_EPS), ("ε float32", FLOAT32_EPS)):
            yield _upright("epsilon", self.place(value), 18, bottom + 4)
            yield _text("tick", self.place(value), 12, name)
        yield _upright("tolerance", self.place(FLOAT64_RELATIVE), 32, bottom + 4)
        yield _text("tick strong", self.place(FLOAT64_RELATIVE), 28, "allowed")


_NAMES = {"torch": "torch float32 error", "flax": "Flax float32 error", "double": "float64 difference"}


def _values(row: Row) -> Iterator[tuple[str, float]]:
    if row.torch_float32_error is not None and row.flax_float32_error is not None:
        yield "torch", row.torch_float32_error
        yield "flax", row.flax_float32_error
    yield "double", row.relative_difference


def _upright(css: str, x: float, top: int, bottom: int) -> str:
    return f'<line class="{css}" x1="{x}%" x2="{x}%" y1="{top}" y2="{bottom}"/>'


def _text(css: str, x: float, y: int, text: str) -> str:
    return f'<text class="{css}" x="{x}%" y="{y}">{text}</text>'
