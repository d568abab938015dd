# SPDX-License-Identifier: MIT
"""Pictures of a report."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator

from genimg_fast._files import write_atomically
from genimg_fast.benchmark import machine
from genimg_fast.benchmark.runtimes import RUNTIMES

OURS, BEST, OTHER, NOT_HELD = "tab:blue", "dimgray", "lightgray", "white"
DIRECTIONS = {"forward": ("o", "tab:blue"), "data gradient": ("s", "tab:orange"), "weight gradient": ("^", "tab:green")}


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """Draws what the report holds, in `folder`; the files."""
    charts = {
        "rows.png": (draw_rows, any(row["runtimes"] for row in report["rows"])),
        "roofline.png": (draw_roofline, bool(report.get("kernels", {}).get("kernels"))),
        "sweeps.png": (draw_sweeps, bool(report.get("sweeps"))),
    }
    paths = []
    for name, (function, has_data) in charts.items():
        if has_data:
            figure = function(report)
            figure.text(0.5, 0.004, _source(report["machine"]), ha="center", va="bottom", fontsize=7, color="dimgray")
            paths.append(folder / name)
            write_atomically(paths[-1], partial(figure.savefig, format="png", dpi=110))
    return paths


def _source(described: dict[str, Any]) -> str:
    return f"{machine.in_words(described)}; {described['date']}, commit {described['commit']}"


def _figure(width: float, height: float) -> Figure:
    figure = Figure(
        figsize=(width, height), layout=ConstrainedLayoutEngine(rect=(0, 0.03, 1, 0.97))
    )  # room for the source line
    return figure


# --- rows ------------------------------------------------------------------------------------------------------------


def draw_rows(report: dict[str, Any]) -> Figure:
    """A panel a row, a bar a runtime: median milliseconds, with quartiles."""
    rows = [row for row in report["rows"] if row["runtimes"]]
    columns = min(3, len(rows))
    lines = math.ceil(len(rows) / columns)
    figure = _figure(4.9 * columns, 0.6 + 2.2 * lines)
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, row in zip(panels, rows, strict=False):
        _draw_row(axes, row)
    for axes in panels[len(rows) :]:
        axes.axis("off")
    title = "Milliseconds for one call: shorter is better.  Dark grey: the best alternative; dashed: the gate; dotted: the goal."
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_row(axes: Any, row: dict[str, Any]) -> None:
    runtimes = sorted(row["runtimes"].items(), key=lambda item: -item[1]["milliseconds"]["median"])
    for y, (name, r) in enumerate(runtimes):
        low, median, high = (r["milliseconds"][q] for q in ("low", "median", "high"))
        color = OURS if name == "ours" else BEST if name == row["best"] else OTHER if r["held_to_isa"] else NOT_HELD
        axes.barh(
            y, median, xerr=[[median - low], [high - median]], color=color, edgecolor="gray", height=0.7, ecolor="black",
            capsize=2,
        )  # fmt: skip
        note = "" if r["held_to_isa"] else f" (not held to {row['isa']})"
        axes.text(high, y, f" {median:.3g}{note}", va="center", fontsize=7)
    axes.set_yticks(range(len(runtimes)), [RUNTIMES[name].label for name, _ in runtimes], fontsize=7)
    axes.set_xlim(0, 1.35 * max(r["milliseconds"]["high"] for _, r in runtimes))
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    title = row["name"]
    if row["best"] is not None:
        title += f"\n{row['ratio']['median']:.2f} times as fast as the best alternative"
        for target, style in (("gate", "--"), ("goal", ":")):
            if target in row:  # where ours must end
                best = row["runtimes"][row["best"]]["milliseconds"]["median"]
                axes.axvline(best / row[target], color="black", linestyle=style, linewidth=1)
    axes.set_title(title, fontsize=8, loc="left", x=-0.2, fontweight="bold")


# --- roofline --------------------------------------------------------------------------------------------------------


def draw_roofline(report: dict[str, Any]) -> Figure:
    """Left: convolutions under the roofline.  Right: kernels that memory bounds, as shares of a copy's bandwidth."""
    limits, measured = report["kernels"]["limits"], report["kernels"]["kernels"]
    figure = _figure(12, 5.5)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_convolutions(left, limits, [k for k in measured if k["limit"] == "SGEMM"])
    _draw_shares(right, [k for k in measured if k["limit"] == "copy"])
    return figure


def _draw_convolutions(axes: Any, limits: dict[str, float], convolutions: list[dict[str, Any]]) -> None:
    peak, bandwidth = limits["flops_per_second"] / 1e9, limits["bytes_per_second"] / 1e9
    intensities = [k["flops"] / k["bytes"] for k in convolutions]
    rates = [k["flops"] / k["milliseconds"] / 1e6 for k in convolutions]
    x = [min([1.0, *intensities]) / 1.5, peak / bandwidth, max([peak / bandwidth, *intensities]) * 1.5]
    axes.plot(x, [x[0] * bandwidth, peak, peak], color="black", linewidth=1)
    axes.annotate(
        f"SGEMM {peak:.0f} GFLOP/s", (x[2], peak), ha="right", va="bottom", fontsize=8, xytext=(0, 2),
        textcoords="offset points",
    )  # fmt: skip
    axes.annotate(
        f"copy {bandwidth:.0f} GB/s", (x[0], x[0] * bandwidth), ha="left", va="bottom", fontsize=8, xytext=(2, 4),
        textcoords="offset points",
    )  # fmt: skip
    for direction, (marker, color) in DIRECTIONS.items():
        for transposed in (True, False):
            points = [
                (i, r)
                for i, r, k in zip(intensities, rates, convolutions, strict=True)
                if k["name"].endswith(direction) and k["name"].startswith("conv_transpose2d") == transposed
            ]
            label = f"{'transposed, ' if transposed else ''}{direction}"
            face = color if transposed else "white"
            axes.scatter(
                *zip(*points, strict=True) if points else ((), ()),
                marker=marker,
                edgecolor=color,
                facecolor=face,
                s=36,
                label=label,
            )
    for intensity, rate, kernel in zip(intensities, rates, convolutions, strict=True):
        if kernel["name"].endswith("forward"):
            channels = kernel["name"].split()[1]
            axes.annotate(channels, (intensity, rate), fontsize=6, xytext=(6, -2), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("FLOP of plain sums per byte of input, weight and output")
    axes.set_ylabel("GFLOP/s of plain sums (Toom-Cook products need fewer)")
    axes.legend(fontsize=7, loc="lower right")
    axes.set_title("DCGAN-64's convolutions, B=64", fontsize=9, loc="left")
    axes.grid(alpha=0.3)


def _draw_shares(axes: Any, bound_by_memory: list[dict[str, Any]]) -> None:
    for y, kernel in enumerate(reversed(bound_by_memory)):
        axes.barh(y, kernel["share"], color=OURS, height=0.6)
        axes.text(kernel["share"], y, f" {kernel['share']:.0%}", va="center", fontsize=8)
    axes.set_yticks(range(len(bound_by_memory)), [k["name"] for k in reversed(bound_by_memory)], fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlim(0, max([1.0, *(k["share"] for k in bound_by_memory)]) * 1.15)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("bytes that must move per second, over a copy's")
    axes.set_title("Bound by memory, forward+backward", fontsize=9, loc="left")


# --- sweeps ----------------------------------------------------------------------------------------------------------


def draw_sweeps(report: dict[str, Any]) -> Figure:
    """Cost for a FLOP against size, ours and eager's; circles mark our cliffs."""
    figure = _figure(4.2 * len(report["sweeps"]), 3.8)
    panels = figure.subplots(1, len(report["sweeps"]), squeeze=False)[0]
    for axes, (name, sweep) in zip(panels, report["sweeps"].items(), strict=True):
        points = sweep["points"]
        for runtime, color in (("ours", OURS), ("eager", BEST)):
            line = [
                (p["size"], p["picoseconds_per_flop"][runtime]) for p in points if runtime in p["picoseconds_per_flop"]
            ]
            if line:
                axes.plot(
                    *zip(*line, strict=True), marker="o", markersize=3, color=color, label=RUNTIMES[runtime].label
                )
        ours = {p["size"]: p["picoseconds_per_flop"].get("ours") for p in points}
        sizes = sorted({c["size"] for c in sweep["cliffs"]})
        if sizes:
            label = "1.5 times a neighbour's"
            axes.scatter(
                sizes, [ours[s] for s in sizes], s=90, facecolor="none", edgecolor="tab:red", label=label, zorder=3
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks([p["size"] for p in points][:: 1 + len(points) // 9], minor=False)
        axes.xaxis.set_major_formatter("{x:.0f}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.tick_params(labelsize=7)
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("picoseconds for a FLOP")
    panels[0].legend(fontsize=8)
    figure.suptitle("One block (ConvTranspose2d k4s2p1 + BN + ReLU, eval): lower is better", fontsize=10)
    return figure
