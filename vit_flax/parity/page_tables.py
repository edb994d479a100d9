"""The page's last part: the tables of all rows, and the command that reproduces them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape

from vit_flax.parity.compare import Row
from vit_flax.parity.page_numbers import compact, plural, shape_text
from vit_flax.parity.report import SECTIONS, Check, Report


def record(report: Report) -> Iterator[str]:
    """Yields the section with all checks, tables, settings and versions of a report."""
    yield '<section id="record"><h2>The full record</h2>'
    if report.checks:
        yield "<h3>Conversion and predictions</h3>" + _checks(report.checks)
    if report.worked_example:
        yield (
            "<h3>The worked example, stage by stage</h3><p>The tutorial follows one image through every stage and "
            "states the shapes. Both frameworks run the same stages, in float64.</p>"
        )
        yield _stages(report.worked_example)
    yield "<h3>Every row</h3>"
    for section, heading in SECTIONS.items():
        if report.sections.get(section):
            yield _rows(section, heading, report.sections[section])
    if report.torch_losses:
        yield _losses(report)
    yield "<h3>The model</h3>" + _pairs(report.config)
    yield "<h3>Computed with</h3>" + _pairs(report.versions)
    yield from _again(report)
    yield "</section>"


def verdict(agrees: bool) -> str:
    """Returns the verdict of a row or check as HTML."""
    return '<span class="agrees">✓ agrees</span>' if agrees else '<strong class="differs">✗ differs</strong>'


def _checks(checks: Iterable[Check]) -> str:
    items = "".join(f"<li>{verdict(check.agrees)} {escape(check.text)}</li>" for check in checks)
    return f'<ul class="checks">{items}</ul>'


def _stages(checks: Iterable[Check]) -> str:
    rows = []
    for check in checks:
        stage, _, found = check.text.rpartition(": ") if ": " in check.text else (check.text, "", "")
        shape, _, difference = found.partition(", relative difference ")
        difference = "0" if difference == "0.0e+00" else difference
        cells = [escape(text).replace(" x ", " × ") for text in (stage, shape, difference)]
        rows.append(
            f'<tr><th scope="row">{cells[0]}</th><td>{cells[1]}</td><td class="number">{cells[2]}</td>'
            f"<td>{verdict(check.agrees)}</td></tr>"
        )
    return _table("The worked example", ("stage", "shape", "relative difference", "verdict"), rows)


def _rows(section: str, heading: str, rows: list[Row]) -> str:
    body = []
    for row in rows:
        numbers = (row.max_difference, row.relative_difference, row.torch_float32_error, row.flax_float32_error)
        cells = "".join(f'<td class="number">{compact(number)}</td>' for number in numbers)
        other = "" if row.flax_name == row.name else f"<small>{escape(row.flax_name)}</small>"
        body.append(
            f'<tr{"" if row.agrees else " class=differs"}><th scope="row"><code>{escape(row.name)}</code>{other}</th>'
            f"<td>{shape_text(row.shape)}</td>{cells}<td>{verdict(row.agrees)}</td></tr>"
        )
    agreeing = sum(row.agrees for row in rows)
    columns = ("torch name, Flax name", "shape", "max diff", "rel diff", "torch f32", "Flax f32", "verdict")
    return (
        f'<details id="table-{escape(section)}"><summary>{escape(heading)} '
        f"<small>{agreeing} of {len(rows)} agree</small></summary>{_table(heading, columns, body)}</details>"
    )


def _losses(report: Report) -> str:
    steps = enumerate(zip(report.torch_losses, report.flax_losses, strict=True), 1)
    rows = [
        f'<tr><th scope="row">{step}</th><td class="number">{ours:.15f}</td><td class="number">{theirs:.15f}</td>'
        f'<td class="number">{compact(abs(ours - theirs))}</td></tr>'
        for step, (ours, theirs) in steps
    ]
    table = _table("Losses", ("step", "torch loss", "Flax loss", "difference"), rows)
    summary = f"Losses, step by step <small>{plural(len(report.torch_losses), 'step')}</small>"
    return f"<details><summary>{summary}</summary>{table}</details>"


def _table(name: str, columns: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f'<th scope="col">{column}</th>' for column in columns)
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}"><table><thead><tr>{head}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _pairs(values: dict) -> str:
    items = "".join(
        f"<div><dt>{escape(str(name))}</dt><dd>{escape(_plain(value))}</dd></div>" for name, value in values.items()
    )
    return f'<dl class="pairs">{items}</dl>'


def _plain(value: object) -> str:
    return shape_text(value) if isinstance(value, list | tuple) else str(value)


def _again(report: Report) -> Iterator[str]:
    if not report.figures:  # only the embedded default has them; the command of other comparisons is not recorded
        return
    options = f" --steps {len(report.torch_losses)}" + (f" --mutate {report.mutation}" if report.mutation else "")
    yield (
        "<h3>Reproduce it</h3>"
        f'<div class="scroll"><pre><code>pip install "vit-linen[torch]"\n'
        f"vit-flax compare{escape(options)} --html report.html</code></pre></div>"
        f"<p>It took {report.seconds:.0f} seconds here. Seeds are fixed; only the last digits of rounding "
        "depend on the machine.</p>"
    )
