"""Writes the tables of benchmarks/README.md and the roofline picture from benchmarks/results.

python -m benchmarks.report
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import accelerators, attention, convert, gpu, input_pipeline, lora, policy_seeds, precision, startup
from benchmarks.races import bandwidth_of, is_probe, peak_of
from benchmarks.results import RESULTS
from benchmarks.roofline import draw

PAGE = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- tables: python -m benchmarks.report -->", "<!-- end of tables -->"
PICTURE = RESULTS / "roofline.png"


def main() -> None:
    """Replaces the text between the two marks, and the picture."""
    page = PAGE.read_text()
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    found = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]
    raced = [result for result in found if "case" in result]
    parts = [table(result) for result in raced]
    modules = (convert, input_pipeline, lora, precision, policy_seeds, startup, accelerators, attention, gpu)
    others = {module.__name__.rpartition(".")[2]: module.table for module in modules}
    by_name = {result["benchmark"]: result for result in found if "benchmark" in result}
    parts += [write(by_name[name]) for name, write in others.items() if name in by_name]
    caption = draw(raced, PICTURE)
    if caption:
        parts.insert(len(raced), f"![roofline]({PICTURE.relative_to(PAGE.parent)})\n\n{caption}\n")
    PAGE.write_text(f"{head}{BEGIN}\n\n" + "\n".join(parts) + f"\n{END}{tail}")


def table(result: dict[str, Any]) -> str:
    """Returns one case as a Markdown table."""
    peak, bandwidth = peak_of(result), bandwidth_of(result)
    probes = [f"{peak / 1e9:.0f} GFLOP/s of the matrix product"] if peak else []
    probes += [f"{bandwidth / 1e9:.0f} GB/s of the memory"] if bandwidth else []
    lines = [
        f"### {result['name']}",
        f"{result['device']}, medians of {result['rounds']} interleaved rounds, commit {result['commit']}"
        + (f"; in the same run {' and '.join(probes)}" if probes else ""),
        "",
        "| | ms | spread | images/s | ours is faster by | share of matmul peak | compile, s | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        if is_probe(name):
            continue
        if "error" in row:
            lines.append(f"| {name} | {row['error']} | | | | | | |")
            continue
        share = f"{row['flops_per_second'] / peak:.0%}" if peak else ""
        ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
        numbers = f"{row['seconds'] * 1e3:.1f} | {row['spread']:.0%} | {row['images_per_second']:.1f} | {ratio}"
        memory = f"{row['peak_bytes'] / 2**20:.0f}" if row["peak_bytes"] else ""  # null: not known
        lines.append(f"| {name} | {numbers} | {share} | {row['compile_seconds']:.1f} | {memory} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
