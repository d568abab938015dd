# SPDX-License-Identifier: MIT
"""Rewrites the measured tables of README.md, and their pictures, from the reports in benchmarks/results/.

A report is the bench.json of `genimg-fast bench --suite cpu`, or what `python -m benchmarks.architectures` or `make gpu-check` writes.
To publish one: copy it to benchmarks/results/<machine>.json and run `python -m benchmarks.readme_table`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks import gpu_ledger
from genimg_fast._files import write_atomically
from genimg_fast.benchmark import charts, machine
from genimg_fast.benchmark.runtimes import RUNTIMES

ROOT = Path(__file__).resolve().parent.parent
CPU, ARCHITECTURES, GPU = "measured table", "table of architectures", "GPU ledger"
ALT_TEXTS = {
    "rows.png": "Bars: milliseconds of every runtime, for each row of the table",
    "roofline.png": "Rooflines: FLOP/s of the convolutions, bandwidth of the losses",
    "sweeps.png": "Curves: cost for a FLOP against batch, image size and channels",
}


def table(report: dict) -> str:
    """One report as Markdown: the machine in a line, a row a workload, then what is not a time."""
    described = report["machine"]
    columns = ["", "eager PyTorch", "the best alternative", "genimg_fast", "times as fast as the best (quartiles)"]
    columns += ["gate, goal"] if any("gate" in row for row in report["rows"]) else []
    lines = [
        f"{machine.in_words(described)}; {described['date']}, commit {described['commit']}:",
        "",
        f"| {' | '.join(columns)} |",
        "|---" * len(columns) + "|",
    ]
    lines += [f"| {' | '.join(_cells(row)[: len(columns)])} |" for row in report["rows"]]
    if "saved_bytes" in report:
        s = report["saved_bytes"]
        sizes = f"{s['eager'] / 1e6:.0f} MB | | {s['ours'] / 1e6:.0f} MB"
        lines.append(
            f"| bytes saved for backward by the generator, B=64 | {sizes} | **{s['ratio']:.2f}** of eager's | {_targets(s)} |"
        )
    for name, what in (("winograd", "with Winograd"), ("plain", "`allow_winograd = False`")):
        if "accuracy" in report:
            a = report["accuracy"][name]
            factor = f"at most **{a['factor']:.2f}** times eager's"
            lines.append(f"| error of any convolution against float64, {what} | 1 | | | {factor} | {_targets(a)} |")
    return "\n".join(lines)


def _cells(row: dict) -> tuple[str, ...]:
    medians = {name: r["milliseconds"]["median"] for name, r in row["runtimes"].items()}
    times = {name: f"{ms:.0f} ms" if ms >= 1000 else f"{ms:.3g} ms" for name, ms in medians.items()}
    if row["best"] is None:
        return row["name"], times.get("eager", ""), "", times.get("ours", "failed"), "", ""
    ratio = row["ratio"]
    return (
        row["name"],
        times.get("eager", ""),
        f"{times[row['best']]}, {RUNTIMES[row['best']].label}",
        times["ours"],
        f"**{ratio['median']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f})",
        _targets(row),
    )


def _targets(result: dict) -> str:
    if "gate" not in result:
        return ""
    return ", ".join(f"{result[t]:g} {'met' if result[f'{t}_met'] else 'not met'}" for t in ("gate", "goal"))


def markers(name: str) -> tuple[str, str]:
    return f"<!-- {name}: start -->", f"<!-- {name}: end -->"


def rewrite(readme: str, name: str, sections: list[str]) -> str:
    """`readme` with the sections between the two markers of that name.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    opening, closing = markers(name)
    before, start, rest = readme.partition(opening)
    _, end, after = rest.partition(closing)
    if not (start and end) or opening in after or closing in before:
        raise ValueError(f"README.md must hold the lines {opening!r} and {closing!r} once each, in this order")
    return "\n\n".join([before + opening, *sections, closing + after])


def load_reports() -> dict[str, dict]:
    return {p.stem: json.loads(p.read_text()) for p in sorted((ROOT / "benchmarks" / "results").glob("*.json"))}


def main() -> int:
    reports = load_reports()
    sections = []
    for name, report in reports.items():
        if report.get("suite") != "cpu":
            continue
        folder = ROOT / "docs" / "benchmarks" / name
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [f"![{ALT_TEXTS[p.name]}]({p.relative_to(ROOT).as_posix()})" for p in charts.draw(report, folder)]
        sections.append("\n\n".join([table(report), *pictures]))
    if not sections:
        print("benchmarks/results/ holds no report of `genimg-fast bench`", file=sys.stderr)
        return 1
    gpus = [report for report in reports.values() if gpu_ledger.is_gpu_report(report)]
    readme = ROOT / "README.md"
    text = rewrite(readme.read_text(), CPU, sections)
    architectures = [table(report) for report in reports.values() if report.get("suite") == "architectures"]
    text = rewrite(text, ARCHITECTURES, architectures)
    text = rewrite(text, GPU, [gpu_ledger.section(gpus, gpu_ledger.source_hash(ROOT))])
    write_atomically(readme, lambda file: file.write(text.encode()))
    print(f"README.md: {len(sections)} CPU(s), {len(gpus)} GPU(s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
