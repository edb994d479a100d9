"""The report as one self-contained HTML page."""

from vit_flax.parity.report import Report


def format_page(report: Report) -> str:
    """Returns the page."""
    return report.title
