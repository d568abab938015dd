# SPDX-License-Identifier: MIT
"""Compares a report of `genimg-fast bench` with an earlier one:

    python -m benchmarks.compare runs/bench/bench.json benchmarks/results/<machine>.json

Exits with 1, naming the rows, if one lost more than a tenth of its lead over the best alternative, or is gone.  Ratios are
compared and not times, since the alternatives are measured in the same run on the same machine.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

ALLOWED_LOSS = 0.10


def figures(report: dict) -> Iterator[tuple[str, float]]:
    """(name, value) of all that is compared; larger is better."""
    for row in report["rows"]:
        if row["best"] is not None:
            yield row["name"], row["ratio"]["median"]
    if "saved_bytes" in report:
        yield "bytes saved for backward", 1 / report["saved_bytes"]["ratio"]
    for name in ("winograd", "plain"):
        if "accuracy" in report:
            yield f"error against float64, {name}", 1 / report["accuracy"][name]["factor"]


def regressions(new: dict, old: dict) -> list[str]:
    """What is worse in `new` by more than `ALLOWED_LOSS`, in words."""
    values = dict(figures(new))
    found = []
    for name, before in figures(old):
        after = values.get(name)
        if after is None:
            found.append(f"{name}: was {before:.2f}, is not measured any more")
        elif after < before * (1 - ALLOWED_LOSS):
            found.append(f"{name}: was {before:.2f}, is {after:.2f}, {1 - after / before:.0%} worse")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare", description="Fails where a ratio got worse by more than 10%."
    )
    parser.add_argument("new", type=Path)
    parser.add_argument("committed", type=Path)
    args = parser.parse_args(argv)
    new, old = json.loads(args.new.read_text()), json.loads(args.committed.read_text())
    for key, now, before in (
        ("CPU", new["machine"]["cpu"], old["machine"]["cpu"]),
        ("number of threads", new["threads"], old["threads"]),
        ("instruction set", new["isa"], old["isa"]),
    ):
        if now != before:
            print(f"note: another {key}: {now}, was {before}")
    worse = regressions(new, old)
    print("\n".join(worse) or f"no ratio is more than {ALLOWED_LOSS:.0%} worse")
    return 1 if worse else 0


if __name__ == "__main__":
    raise SystemExit(main())
