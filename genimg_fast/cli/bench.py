# SPDX-License-Identifier: MIT
"""`genimg-fast bench`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from genimg_fast.cli import _common


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = _common.add_parser(
        subparsers,
        "bench",
        "Time the fused kernels against other runtimes, each in a process of its own, taking turns.",
        "genimg-fast bench\ngenimg-fast bench --suite cpu --out runs/cpu",
    )
    parser.add_argument(
        "--suite",
        choices=("quick", "cpu"),
        default="quick",
        help="quick: models and losses against eager; cpu: everything against all that is installed, in ten minutes "
        "(default: %(default)s)",
    )
    parser.add_argument("--match", default="", metavar="TEXT", help="only what has TEXT in its name")
    parser.add_argument(
        "--seconds",
        type=_common.duration,
        metavar="X",
        default=8.0,
        help="of timing for each row, about (default: %(default)s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/bench"),
        metavar="DIR",
        help="for bench.json and the charts (default: %(default)s)",
    )
    running = parser.add_argument_group("running")
    running.add_argument(
        "--threads", type=_common.positive, metavar="N", help="for each runtime (default: the physical cores)"
    )
    running.add_argument("--isa", choices=("avx2",), help="hold every runtime to it (default: what the CPU has)")
    _common.add_device(running)
    return parser


def run(args: argparse.Namespace) -> int:
    from genimg_fast import _extension
    from genimg_fast._files import write_atomically
    from genimg_fast.benchmark import charts, machine, suite

    device = _common.choose_device("cpu" if args.suite == "cpu" and args.device == "auto" else args.device)
    if args.suite == "cpu" and device.type != "cpu":
        raise _common.CommandError(f"--suite cpu measures the CPU, not {device}")
    reason = _extension.why_not_on(device)
    if reason:
        raise _common.CommandError(f"nothing to compare: no {device.type} kernels ({reason})")
    if args.isa and args.isa not in _extension.available_cpu_isas():
        raise _common.CommandError(f"--isa {args.isa}: this CPU lacks it")
    rows = suite.CPU_ROWS if args.suite == "cpu" else suite.QUICK_ROWS
    rows = tuple(row for row in rows if args.match in row.name)
    parts = tuple(part for part in (suite.CPU_PARTS if args.suite == "cpu" else ()) if args.match in part)
    if not rows and not parts:
        raise _common.CommandError(f"--match {args.match!r}: nothing in the {args.suite} suite is called so")

    threads = args.threads or machine.physical_cores()
    described = machine.describe(threads, args.isa)
    print(f"{machine.in_words(described)}\n", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    measured = suite.run(
        rows,
        parts,
        threads=threads,
        seconds=args.seconds,
        isa=args.isa,
        device=str(device),
        say=lambda text: print(text, flush=True),
    )
    report = {"machine": described, "device": device.type, "suite": args.suite, **measured}
    text = json.dumps(report, indent=1) + "\n"
    write_atomically(args.out / "bench.json", lambda file: file.write(text.encode()))
    pictures = [str(path) for path in charts.draw(report, args.out)]
    print(f"\nwritten: {', '.join([str(args.out / 'bench.json'), *pictures])}")
    return 1 if any("ours" in row["failed"] for row in report["rows"]) else 0
