"""Draws the roofline plot of the measured results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.races import bandwidth_of, is_probe, peak_of

CAPTION = (
    "Across: the model's FLOPs for each byte that the compiler says its program accesses. Up: the model's FLOPs a "
    "second as measured. The flat roofs are the fastest matrix products and the slope is the memory's bandwidth, "
    "measured in the same runs. The compiler counts the operands of every operation, those in a cache too: points "
    "stand left of where the memory would see them. Contestants whose compilers do not tell (torch, ONNX Runtime, "
    "OpenVINO) are not shown."
)
COLOURS = {"vit_flax": "#b2182b", "linen": "#2166ac", "linen_scan": "#67a9cf", "equimo": "#1b7837"}
MARKS = {"float32": "o", "bfloat16": "^"}
PANELS = {"inference": "inference", "train_step": "training step"}
Point = tuple[float, float, str, str, str]  # FLOPs a byte, FLOPs a second, contestant, precision, model and batch


def points(results: list[dict[str, Any]], mode: str) -> list[Point]:
    """Returns the points of one mode."""
    found = []
    for result in results:
        case = Case(**result["case"])
        if case.mode != mode:
            continue
        for name, row in result["rows"].items():
            if name in COLOURS and not is_probe(name) and row.get("compiler_bytes") and "seconds" in row:
                intensity = case.flops / row["compiler_bytes"]
                found.append((intensity, row["flops_per_second"], name, case.precision, f"{case.model} {case.batch}"))
    return found


def draw(results: list[dict[str, Any]], path: Path) -> str | None:
    """Writes the picture of all results of one device and returns its caption; None where there is nothing to draw."""
    results = [result for result in results if result["case"]["mode"] in PANELS]
    peaks: dict[str, float] = {}
    for result in results:
        precision, peak = result["case"]["precision"], peak_of(result)
        if peak:
            peaks[precision] = max(peak, peaks.get(precision, 0.0))
    bandwidth = max((found for result in results if (found := bandwidth_of(result))), default=None)
    panels = {mode: points(results, mode) for mode in PANELS}
    if not peaks or bandwidth is None or not any(panels.values()):
        return None

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np
    from matplotlib.lines import Line2D

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    everything = [point for found in panels.values() for point in found]
    left = min(min(point[0] for point in everything), *(peak / bandwidth for peak in peaks.values())) / 2
    right = max(max(point[0] for point in everything), *(peak / bandwidth for peak in peaks.values())) * 3
    low = min(point[1] for point in everything) / 2
    for axis, (mode, title) in zip(axes, PANELS.items(), strict=True):
        top = max(peaks.values())
        slope = np.array([left, top / bandwidth])
        axis.plot(slope, slope * bandwidth, color="black", linewidth=1)
        axis.annotate(
            f"memory {bandwidth / 1e9:.0f} GB/s", (slope[0], slope[0] * bandwidth), xytext=(4, -2),
            textcoords="offset points", va="top", fontsize=8,
        )  # fmt: skip
        for precision, peak in peaks.items():
            axis.plot([peak / bandwidth, right], [peak, peak], color="black", linewidth=1)
            axis.annotate(
                f"{precision} product {peak / 1e9:.0f} GFLOP/s", (right, peak), xytext=(-2, 3),
                textcoords="offset points", ha="right", fontsize=8,
            )  # fmt: skip
        for number, (intensity, rate, name, precision, label) in enumerate(
            sorted(panels[mode], key=lambda point: (point[2], point[3], point[0]))
        ):
            ours = name == "vit_flax"
            axis.plot(
                intensity, rate, MARKS[precision], color=COLOURS[name], markersize=8 if ours else 6,
                fillstyle="full" if ours else "none", zorder=3 if ours else 2,
            )  # fmt: skip
            if ours:
                above = number % 2  # neighbours' labels keep out of each other's way
                axis.annotate(
                    label, (intensity, rate), xytext=(0, 7 if above else -7), textcoords="offset points",
                    ha="center", va="bottom" if above else "top", fontsize=7, color=COLOURS[name],
                )  # fmt: skip
        axis.set(xscale="log", yscale="log", xlim=(left, right), title=title, xlabel="model FLOPs per byte accessed")
        axis.grid(which="both", color="#e5e5e5", linewidth=0.5)
        axis.set_axisbelow(True)
    axes[0].set(ylabel="model FLOPs a second", ylim=(low, max(peaks.values()) * 1.6))
    shown = [name for name in COLOURS if any(point[2] == name for point in everything)]
    handles = [Line2D([], [], color=COLOURS[name], marker="s", linestyle="", label=name) for name in shown]
    handles += [Line2D([], [], color="gray", marker=MARKS[p], linestyle="", label=p) for p in MARKS if p in peaks]
    axes[1].legend(handles=handles, fontsize=8, loc="lower right")
    figure.suptitle(results[0]["device"], fontsize=10)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})
    plt.close(figure)
    return CAPTION
