"""Writes the tables of benchmarks/README.md from benchmarks/results: `python -m benchmarks.report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.races import peak_of
from benchmarks.rounds import RESULTS

PAGE = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- tables: python -m benchmarks.report -->", "<!-- end of tables -->"


def main() -> None:
    """Replaces what stands between the two marks."""
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    tables = [table(result) for result in found if "case" in result]
    tables += [pipeline_table(result) for result in found if result.get("benchmark") == "input_pipeline"]
    PAGE.write_text(f"{head}{BEGIN}\n\n" + "\n".join(tables) + f"\n{END}{tail}")


def table(result: dict[str, Any]) -> str:
    """Returns one case as a Markdown table."""
    peak = peak_of(result)
    lines = [
        f"### {result['name']}",
        f"{result['device']}, medians of {result['rounds']} interleaved rounds, commit {result['commit']}",
        "",
        "| | ms | spread | images/s | ours is faster by | share of matmul peak | compile, s | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        if "error" in row:
            lines.append(f"| {name} | {row['error']} | | | | | | |")
            continue
        share = f"{row['flops_per_second'] / peak:.0%}" if peak else ""
        ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
        numbers = f"{row['seconds'] * 1e3:.1f} | {row['spread']:.0%} | {row['images_per_second']:.1f} | {ratio}"
        lines.append(
            f"| {name} | {numbers} | {share} | {row['compile_seconds']:.1f} | {row['peak_bytes'] / 2**20:.0f} |"
        )
    return "\n".join(lines) + "\n"


def pipeline_table(result: dict[str, Any]) -> str:
    """Returns the loader's images a second beside the training step's as a Markdown table."""
    lines = [
        "### The loader beside the training step",
        f"{result['device']}, medians of {result['rounds']} interleaved rounds (quartiles), commit {result['commit']}",
        "",
        "| data | model | batch | loader, images/s | step, images/s | loader / step | together | of the step |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["cases"].items():
        loader, step, both = (_rate(row[f"{kind}_images_per_second"]) for kind in ("loader", "step", "together"))
        ratios = f"{row['loader_over_step']:.1f} | {both} | {row['together_share']:.0%}"
        lines.append(f"| {name} | {row['model']} | {row['batch_size']} | {loader} | {step} | {ratios} |")
    return "\n".join(lines) + "\n"


def _rate(row: dict[str, float]) -> str:
    return f"{row['median']:.4g} ({row['lower_quartile']:.4g}-{row['upper_quartile']:.4g})"


if __name__ == "__main__":
    main()
