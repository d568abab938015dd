# SPDX-License-Identifier: MIT
"""Rewrites the measured table of README.md from the reports in benchmarks/results/.

A report is the bench.json of `genimg-fast bench`.  To publish one: copy it to benchmarks/results/<machine>.json and run
`python -m benchmarks.readme_table`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from genimg_fast.cli import _machine

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- measured table: start -->", "<!-- measured table: end -->"


def table(report: dict) -> str:
    """One report as Markdown: the machine in a line, a row a workload."""
    machine = report["machine"]
    lines = [
        f"{_machine.in_words(machine)}; {machine['date']}, commit {machine['commit']}:",
        "",
        "| | eager PyTorch | genimg_fast | times as fast (quartiles) |",
        "|---|---|---|---|",
    ]
    for r in report["results"]:
        s = r["speedup"]
        cells = (
            f"{r['name']}, {r['passes']}",
            f"{r['eager']['milliseconds']:.3g} ms, {r['eager']['rate']:.3g} {r['unit']}",
            f"{r['native']['milliseconds']:.3g} ms, {r['native']['rate']:.3g} {r['unit']}",
            f"**{s['median']:.2f}** ({s['low']:.2f} to {s['high']:.2f})",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rewrite(readme: str, reports: list[dict]) -> str:
    """`readme` with the tables of the reports between the two markers.

    Raises:
        ValueError: the markers are not there, once each and in order.
    """
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end) or START in after or END in before:
        raise ValueError(f"README.md must hold the lines {START!r} and {END!r} once each, in this order")
    tables = "\n\n".join(map(table, reports))
    return f"{before}{START}\n\n{tables}\n\n{END}{after}"


def main() -> int:
    paths = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
    reports = [report for path in paths if "results" in (report := json.loads(path.read_text()))]
    if not reports:
        print("benchmarks/results/ holds no report of `genimg-fast bench`", file=sys.stderr)
        return 1
    readme = ROOT / "README.md"
    readme.write_text(rewrite(readme.read_text(), reports))
    print(f"README.md: {len(reports)} table(s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
