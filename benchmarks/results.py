"""The folder of results, and statistics of samples."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.environment import describe

RESULTS = Path(__file__).parent / "results"


def summarise(samples: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Returns median, smallest and largest of every measure."""
    return {
        measure: {"median": statistics.median(values), "low": min(values), "high": max(values)}
        for measure in samples[0]
        for values in [[sample[measure] for sample in samples]]
    }


def write(path: Path, benchmark: str, **found: Any) -> dict[str, Any]:
    """Writes figures with their environment, and returns both."""
    result = {"benchmark": benchmark, **describe(), **found}
    save(path, result)
    return result


def save(path: Path, result: dict[str, Any]) -> None:
    """Writes a result that has its environment already."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
