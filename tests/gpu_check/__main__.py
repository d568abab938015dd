# SPDX-License-Identifier: MIT
"""Checks and measures everything on this machine's GPU, in under eight minutes:

    python -m tests.gpu_check               # writes benchmarks/results/<device>.json; then: python -m benchmarks.readme_table
    python -m tests.gpu_check --dry-run     # every step on a GPU that tests/simulated_gpu simulates, on small shapes

Exits with 1 if a check failed; gates that were not met are told and change nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import gpu_ledger
from tests.gpu_check import libraries
from tests.gpu_check.report import Report

SECTIONS = ("checks", "sanitizer", "rows", "kernels", "tiles")
SECONDS = 455
CHECK_SECONDS, SANITIZER_SECONDS, ANSWER_SECONDS = 150, 90, 120
LATE = 15  # seconds before the end nothing new is started
PROCESSES = 5  # that check at the same time


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description=__doc__.split(":")[0])
    parser.add_argument("--dry-run", action="store_true", help="on a simulated GPU, with small shapes")
    parser.add_argument(
        "--only", choices=SECTIONS, action="append", help="a section; may be given again (default: all)"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="to end after, about (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the report (default: benchmarks/results)")
    args = parser.parse_args(argv)
    if args.dry_run and (code := _run_simulated(argv)) is not None:
        return code
    try:
        _require_gpu()
        used = libraries.ensure()
    except libraries.LibraryError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    folder = args.out or Path("runs/gpu-check" if args.dry_run else "benchmarks/results")
    report = _new_report(args.dry_run, folder, args.seconds, used)
    report.say(f"{report.content['device']}, torch {report.content['machine']['versions']['torch']}; {report.path}")
    for description in used.values():
        report.say(description)
    run(report, args.dry_run, args.only or SECTIONS)
    return conclude(report)


def _run_simulated(argv: Sequence[str] | None) -> int | None:
    """The exit code of this program where there is a simulated GPU; None if that is here."""
    import torch

    from tests import simulated_gpu  # which needs what compiles it: a check of a GPU does not

    if simulated_gpu.is_here():
        return None
    if torch.cuda.is_available():
        print("gpu-check: --dry-run simulates a GPU where there is none, and here is one", file=sys.stderr)
        return 2
    command = [sys.executable, "-m", "tests.gpu_check", *(sys.argv[1:] if argv is None else argv)]
    return subprocess.run(command, env=simulated_gpu.environment()).returncode


def _require_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise libraries.LibraryError("torch sees no GPU here; --dry-run simulates one")


def _new_report(dry: bool, folder: Path, seconds: float, used: dict[str, str]) -> Report:
    import torch

    from genimg_fast.benchmark import machine

    name = torch.cuda.get_device_name()
    path = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    return Report(
        path, seconds, kind="gpu-check", schema=1, dry_run=dry, complete=False, device=name,
        cuda=torch.version.cuda, machine=machine.describe(_threads(dry)), source_hash=gpu_ledger.source_hash(), libraries=used,
        seed=0 if dry else time.time_ns() % 10**6, checks={},  # a dry run is a test
    )  # fmt: skip


def _threads(dry: bool) -> int:
    """Of each process that is timed: they only prepare."""
    return 1 if dry else 4


def run(report: Report, dry: bool, sections: Sequence[str]) -> None:
    """The sections asked for; each has the rest of the time, or its share of it."""
    if "checks" in sections:
        _checks(report, dry)
    if "sanitizer" in sections:
        _sanitizer(report, dry)
    if {"rows", "kernels", "tiles"} & set(sections):
        _benchmarks(report, dry, sections)
    report.add(
        "complete", set(sections) == set(SECTIONS) and "failed" not in report.content and report.seconds_left > 0
    )


def _checks(report: Report, dry: bool) -> None:
    import torch

    from tests.gpu_check import cases
    from tests.gpu_check.subject import BY_WGMMA

    subjects = [*cases.OPS, "models"]
    if torch.cuda.get_device_capability()[0] == 9:
        subjects += BY_WGMMA
    report.say(f"checks of {len(cases.OPS)} ops and the models, seed {report.content['seed']}")
    seconds = report.seconds_left if dry else min(CHECK_SECONDS, report.seconds_left)
    with ThreadPoolExecutor(1 if dry else PROCESSES) as pool:
        jobs = {subject: pool.submit(_subject, subject, report.content["seed"], seconds, dry) for subject in subjects}
        for subject, job in jobs.items():
            checks = job.result()
            report.add("checks", {**report.content["checks"], subject: checks})
            report.say(f"  {subject}: {_checks_in_words(checks)}")
    by_wgmma = [c for subject in BY_WGMMA for c in report.content["checks"].get(subject, {}).values()]
    report.add("wgmma", bool(by_wgmma) and all(check["ok"] for check in by_wgmma))
    factors = {
        mode: max(c["parity"]["error_over_that_of_pytorch"].get(mode, 0) for c in _convolution_checks(report))
        for c in _convolution_checks(report)
        for mode in c["parity"]["error_over_that_of_pytorch"]
    }
    if factors:
        mode = max(factors, key=lambda m: factors[m])
        report.add("accuracy", {"factor": factors[mode], "mode": mode, "factors": factors})


def _convolution_checks(report: Report) -> list[dict[str, Any]]:
    return [c for c in report.content["checks"].values() if "error_over_that_of_pytorch" in c.get("parity", {})]


def _subject(subject: str, seed: int, seconds: float, quick: bool = False) -> dict[str, Any]:
    """Runs `tests.gpu_check.subject`; what it leaves out, since it died or was too slow, has failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "checks.json"
        options = ["--seed", str(seed), "--out", str(out), *["--quick"] * quick]
        command = [sys.executable, "-m", "tests.gpu_check.subject", subject, *options]
        try:
            done = subprocess.run(command, cwd=libraries.ROOT, capture_output=True, text=True, timeout=seconds)
            reason = " | ".join(done.stderr.splitlines()[-5:]) or f"exit code {done.returncode}"
        except subprocess.TimeoutExpired:
            reason = f"no end within {seconds:.0f} s"
        if out.exists():
            return json.loads(out.read_text())
    return {"process": {"ok": False, "cases": 0, "failures": 1, "failed": [reason]}}


def _checks_in_words(checks: dict[str, Any]) -> str:
    told = []
    for name, check in checks.items():
        told.append(f"{name} {check['cases']} ok" if check["ok"] else f"{name} {check['failures']} FAILED")
        told += [f"\n      {line}" for line in check["failed"]]
    return ", ".join(told)


def _sanitizer(report: Report, dry: bool) -> None:
    from tests.gpu_check import sanitizer

    report.say("compute-sanitizer")
    if dry:
        sanitizer.ops()
        report.add("sanitizer", {"ok": None, "skipped": "there is no GPU"})
    else:
        report.add("sanitizer", sanitizer.check(min(SANITIZER_SECONDS, report.seconds_left)))
    report.say(f"  {report.content['sanitizer']}")


def _benchmarks(report: Report, dry: bool, sections: Sequence[str]) -> None:
    from genimg_fast.backends import cuda
    from genimg_fast.benchmark import suite, worker
    from tests.gpu_check import rows, workloads

    # What is timed is what should be shipped: the kernels for Hopper's own instructions where they passed their checks.
    wgmma = report.content.get("wgmma", False)
    os.environ["GENIMG_FAST_WGMMA"] = str(int(wgmma))
    sizes = rows.TINY if dry else rows.Sizes()
    measure_limits = workloads.MeasureLimits(*(64, 1 << 16) if dry else ())
    with suite.Workers(_threads(dry), "cuda") as workers:
        try:
            limits = workers.get("ours", None).ask("call", measure_limits)
        except worker.RuntimeFailedError as error:
            report.add("failed", f"limits: {error}")
            return report.say(f"FAILED limits: {error}")
        report.add("limits", limits._asdict())
        report.say(f"copy {limits.bytes_per_second / 1e12:.3g} TB/s, bf16 {limits.flops_per_second / 1e12:.3g} TFLOP/s")
        report.add("rows", [])
        for row in rows.rows(sizes) if "rows" in sections else ():
            if report.seconds_left < LATE:
                report.say(f"{row.row.name}: not run, out of time")
                continue
            worker.ANSWER_SECONDS = min(ANSWER_SECONDS, int(report.seconds_left))
            if dry:  # compiling takes minutes
                row = rows.without_compiling(row)
            report.say(row.row.name)
            report.add("rows", rows.measure(row, workers, limits, 0 if dry else 3, sizes.min_rounds))
            print(rows.in_words(report.content["rows"][-1]), flush=True)
        bench = rows.Bench(workers, limits, sizes, print, lambda: report.seconds_left < LATE)
        report.add("kernels", [])
        if "kernels" in sections:
            report.say("convolutions alone, ours and cuDNN's (share of their limit)")
            runtimes = ("ours", "channels_last", *["ours_without_wgmma"] * wgmma)
            for kernel in rows.kernels(bench, runtimes):
                report.add("kernels", kernel)
        report.add("tiles", [])
        if "tiles" in sections:
            report.say("convolutions alone, by each tile")
            names = [name for name, (by_wgmma, _) in cuda.TILES.items() if wgmma or not by_wgmma]
            for kernel in rows.tiles(bench, names):
                report.add("tiles", kernel)


def conclude(report: Report) -> int:
    passed, failed = gpu_ledger.counts(report.content)
    rows = report.content.get("rows", [])
    if rows:
        print(f"\n{gpu_ledger.table(report.content)}\n", flush=True)
    report.say(f"{passed} checks passed, {len(failed)} failed: {report.path}")
    for name in failed:
        print(f"FAILED {name}")
    # The simulated GPU has no profiler, which counts launches.
    missing = any("ours" in row["failed"] or (row["not_measured"] and not report.content["dry_run"]) for row in rows)
    return 1 if failed or missing or "failed" in report.content else 0


if __name__ == "__main__":
    os.chdir(libraries.ROOT)
    sys.exit(main())
