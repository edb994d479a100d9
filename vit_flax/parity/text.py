"""The report as a terminal table."""

from __future__ import annotations

from collections.abc import Iterator

from vit_flax.parity.compare import Row
from vit_flax.parity.report import SECTIONS, Report


def format_report(report: Report) -> str:
    """Returns the report as text; the last line is the verdict, with the first diverging component."""
    return "\n".join(_lines(report))


def _lines(report: Report) -> Iterator[str]:
    yield report.title
    yield "  ".join(f"{name} {version}" for name, version in report.versions.items())
    for section, heading in SECTIONS.items():
        rows = report.sections.get(section)
        if rows:
            yield from ("", heading, *_table(rows))
    if report.torch_losses:
        yield from ("", f"{'step':>4}  {'torch loss':>18}  {'flax loss':>18}")
        steps = list(enumerate(zip(report.torch_losses, report.flax_losses, strict=True), 1))
        shown = steps if len(steps) <= 12 else steps[:6] + steps[-6:]
        yield from (f"{step:>4}  {a:>18.15f}  {b:>18.15f}" for step, (a, b) in shown)
    if report.worked_example:
        yield from ("", "The tutorial's worked example")
        yield from (f"  {_mark(line.agrees)}  {line.text}" for line in report.worked_example)
    yield from ("", *_conclusion(report))


def _table(rows: list[Row]) -> Iterator[str]:
    width = max(len("component"), *(len(row.name) for row in rows))
    shapes = [" x ".join(map(str, row.shape)) or "one number" for row in rows]
    shape_width = max(len("shape"), *map(len, shapes))
    yield (
        f"{'component':<{width}}  {'shape':<{shape_width}}  {'max diff':>8}  {'rel diff':>8}"
        f"  {'torch f32':>9}  {'flax f32':>9}  verdict"
    )
    for row, shape in zip(rows, shapes, strict=True):
        yield (
            f"{row.name:<{width}}  {shape:<{shape_width}}  {row.max_difference:>8.1e}  {row.relative_difference:>8.1e}"
            f"  {_optional(row.torch_float32_error)}  {_optional(row.flax_float32_error)}  {_mark(row.agrees)}"
        )


def _optional(error: float | None) -> str:
    return f"{'-':>9}" if error is None else f"{error:>9.1e}"


def _mark(agrees: bool) -> str:
    return "agrees" if agrees else "DIFFERS"


def _conclusion(report: Report) -> Iterator[str]:
    if report.mutation:
        yield f"mutation applied: {report.mutation}"
    for section, rows in report.sections.items():
        agreeing = sum(row.agrees for row in rows)
        worst = max(row.relative_difference for row in rows)
        count = f"{agreeing} of {len(rows)} rows, worst {worst:.1e} in float64"
        yield f"{_mark(agreeing == len(rows)):<7}  {section}: {count}"
    yield from (f"{_mark(check.agrees):<7}  {check.text}" for check in report.checks)
    if report.worked_example:
        agreeing = sum(line.agrees for line in report.worked_example)
        holds = agreeing == len(report.worked_example)
        yield f"{_mark(holds):<7}  worked example: {agreeing} of {len(report.worked_example)} stages"
    first = report.first_divergence
    if report.agrees:
        yield f"The two models are the same ({report.seconds:.0f} s)."
    elif first is not None:
        yield f"The models differ. First diverging component: {first[1]} ({first[0]})."
    else:
        yield "The models differ in the statements marked DIFFERS above."
