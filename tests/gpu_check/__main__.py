# SPDX-License-Identifier: MIT
"""Checks and measures everything on this machine's GPU, in under eight minutes:

    python -m tests.gpu_check               # writes benchmarks/results/<device>.json; then: python -m benchmarks.readme_table
    python -m tests.gpu_check --dry-run     # every step on a GPU that tests/simulated_gpu simulates, on small shapes

What there was no time for, single convolutions and Hopper's own instructions above all, a second run adds to the report:

    python -m tests.gpu_check --continue benchmarks/results/<device>.json

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
import traceback
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import gpu_ledger
from tests.gpu_check import libraries
from tests.gpu_check.report import Report

if TYPE_CHECKING:  # torch is loaded once it is known what runs on it
    from genimg_fast.benchmark.suite import Workers
    from tests.gpu_check.rows import Bench, GPURow

SECONDS = 465
CHECK_SECONDS, CANARY_SECONDS, SANITIZER_SECONDS, ANSWER_SECONDS = 170, 60, 75, 120
LATE, ROW_SECONDS = 15, 75  # before the end nothing new is started; no row, since most compile
PROCESSES = 5  # that check at the same time


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--dry-run", action="store_true", help="on a simulated GPU, with small shapes")
    parser.add_argument(
        "--only", choices=SECTIONS, action="append", help="a section; may be given again (default: all)"
    )
    parser.add_argument("--seconds", type=float, default=SECONDS, help="to end after, about (default: %(default)s)")
    parser.add_argument(
        "--continue", dest="begun", type=Path, metavar="REPORT", help="keep what this report of the same sources holds"
    )
    parser.add_argument("--out", type=Path, help="folder of the report (default: benchmarks/results)")
    args = parser.parse_args(argv)
    deadline = time.monotonic() + args.seconds
    if args.dry_run and (code := _run_simulated(argv)) is not None:
        return code
    try:
        _require_gpu()
        begun = _read(args.begun) if args.begun else {}
        used = libraries.ensure()
    except libraries.LibraryError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return 2
    folder = args.out or Path("runs/gpu-check" if args.dry_run else "benchmarks/results")
    report = _new_report(args.dry_run, folder, deadline, used, begun)
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


def _read(path: Path) -> dict[str, Any]:
    """The report of an earlier run, of the same sources on the same GPU."""
    import torch

    try:
        begun = json.loads(path.read_text())
        is_same = (begun["source_hash"], begun["device"]) == (gpu_ledger.source_hash(), torch.cuda.get_device_name())
    except (OSError, ValueError, KeyError) as error:
        raise libraries.LibraryError(f"{path} is no report: {error}") from error
    if not is_same:
        raise libraries.LibraryError(f"{path} is of other sources or another GPU: nothing of it can be kept")
    return begun


def _new_report(dry: bool, folder: Path, deadline: float, used: dict[str, str], begun: dict[str, Any]) -> Report:
    import torch

    from genimg_fast.benchmark import machine

    name = torch.cuda.get_device_name()
    path = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower()).strip('-')}.json"
    seed = 0 if dry else time.time_ns() % 10**6  # a dry run is a test
    lists = ("finished", "rows", "kernels", "tiles", "kernels by wgmma", "tiles by wgmma")
    content = {"seed": seed, "checks": {}, **{name: [] for name in lists}, **begun}
    content["rows"] = [row for row in content["rows"] if not row["cut_off"]]
    content |= {
        "kind": "gpu-check", "schema": 1, "dry_run": dry, "complete": False, "device": name, "cuda": torch.version.cuda,
        "machine": machine.describe(_threads(dry)), "source_hash": gpu_ledger.source_hash(), "libraries": used,
    }  # fmt: skip
    content["failed"] = []
    return Report(path, deadline, content)


def _threads(dry: bool) -> int:
    """Of each process that is timed: they only prepare."""
    return 1 if dry else 4


def run(report: Report, dry: bool, sections: Sequence[str]) -> None:
    """The sections asked for, but those that are finished; each goes on where it ended."""
    from genimg_fast.backends import cuda
    from genimg_fast.benchmark import suite, worker

    os.environ["GENIMG_FAST_WGMMA"], cuda.allow_wgmma = "0", False  # as it is shipped
    worker.ANSWER_SECONDS = ANSWER_SECONDS
    with suite.Workers(_threads(dry), "cuda", report.deadline) as workers:
        for name in SECTIONS:
            if name not in sections or name in report.content["finished"]:
                continue
            if name == "wgmma" and {"rows", "kernels", "tiles"} & {*sections} - {*report.content["finished"]}:
                report.say("wgmma: not run, since it may hang the GPU and not everything else is measured")
            elif report.seconds_left < LATE:
                report.say(f"{name}: not run, out of time")
            else:
                try:
                    if SECTIONS[name](report, dry, workers):
                        report.add("finished", name)
                except Exception as error:  # whatever it is: the other sections are still wanted
                    traceback.print_exc()
                    report.add("failed", f"{name}: {type(error).__name__}: {error}")
        report.add("complete", {*report.content["finished"]} == {*SECTIONS})


def _checks(report: Report, dry: bool, workers: Workers) -> bool:
    from tests.gpu_check import cases

    report.say(f"checks of {len(cases.OPS)} ops and the models, seed {report.content['seed']}")
    return _run_subjects(report, [*cases.OPS, "models"], CHECK_SECONDS, dry)


def _run_subjects(report: Report, subjects: Iterable[str], seconds: float, dry: bool) -> bool:
    """The checks of these subjects that have not been made yet; whether all came to their end."""
    checks = report.content["checks"]

    def unfinished() -> list[str]:
        return [subject for subject in subjects if "process" in checks.get(subject, {"process": None})]

    deadline = time.monotonic() + (report.seconds_left if dry else min(seconds, report.seconds_left - LATE))
    with ThreadPoolExecutor(1 if dry else PROCESSES) as pool:
        jobs = {
            pool.submit(_subject, subject, report.content["seed"], deadline, checks.get(subject, {}), dry): subject
            for subject in unfinished()
        }
        for job in as_completed(jobs):
            if job.result():
                checks[jobs[job]] = job.result()
                report.add("checks", checks)
                report.say(f"  {jobs[job]}: {_checks_in_words(job.result())}")
    factors: dict[str, float] = {}
    for found in checks.values():
        for mode, factor in found.get("parity", {}).get("error_over_that_of_pytorch", {}).items():
            factors[mode] = max(factor, factors.get(mode, 0))
    if factors:
        mode = max(factors, key=lambda m: factors[m])
        report.add("accuracy", {"factor": factors[mode], "mode": mode, "factors": factors})
    return not unfinished()


def _subject(subject: str, seed: int, deadline: float, before: dict[str, Any], quick: bool = False) -> dict[str, Any]:
    """Runs `tests.gpu_check.subject`, which keeps `before`.  If it dies or is too slow, its process has failed.

    Args:
        deadline: on `time.monotonic`'s clock; nothing is run, nor returned, after it.
    """
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "checks.json"
        out.write_text(json.dumps({name: check for name, check in before.items() if name != "process"}))
        options = ["--seed", str(seed), "--out", str(out), *["--quick"] * quick]
        command = [sys.executable, "-m", "tests.gpu_check.subject", subject, *options]
        threads = {"OMP_NUM_THREADS": "1" if quick else "2"}  # as many as cores in each process would spin
        try:
            done = subprocess.run(
                command, cwd=libraries.ROOT, env=os.environ | threads, capture_output=True, text=True, timeout=seconds
            )
            reason = " | ".join(done.stderr.splitlines()[-5:]) or f"exit code {done.returncode}"
            reason *= done.returncode != 0
        except subprocess.TimeoutExpired:
            reason = f"no end within {seconds:.0f} s"
        checks = json.loads(out.read_text())
    if reason:
        running = [f"{name}, {check['running']}: " for name, check in checks.items() if "running" in check]
        checks["process"] = {"ok": False, "cases": 0, "failures": 1, "failed": ["".join([*running, reason])]}
    return checks


def _checks_in_words(checks: dict[str, Any]) -> str:
    told = []
    for name, check in checks.items():
        in_time = " in time" * ("running" in check)
        told.append(
            f"{name} {check['failures']} FAILED" if check["failures"] else f"{name} {check['cases']} ok{in_time}"
        )
        told += [f"\n      {line}" for line in check["failed"]]
    return ", ".join(told)


def _sanitizer(report: Report, dry: bool, workers: Workers) -> bool:
    from tests.gpu_check import sanitizer

    return _sanitize(report, sanitizer.OPS, dry)


def _sanitize(report: Report, names: Sequence[str], dry: bool) -> bool:
    from tests.gpu_check import sanitizer

    report.say(f"compute-sanitizer: {', '.join(names)}")
    if dry:
        sanitizer.ops()
        found: dict[str, Any] = {"ok": None, "skipped": "there is no GPU"}
    else:
        seconds = min(SANITIZER_SECONDS, report.seconds_left - LATE)
        found = sanitizer.check(names, seconds, report.content.get("sanitizer", {}))
    report.add("sanitizer", found)
    report.say(f"  {found}")
    return found["ok"] is not None or "skipped" in found


def _bench(report: Report, dry: bool, workers: Workers) -> Bench:
    """What measurements take."""
    from tests.gpu_check import rows, workloads

    if "limits" not in report.content:
        measure_limits = workloads.MeasureLimits(*(64, 1 << 16) if dry else ())
        limits = workers.get("ours", None).ask("call", measure_limits)
        report.add("limits", limits._asdict())
        report.say(f"copy {limits.bytes_per_second / 1e12:.3g} TB/s, bf16 {limits.flops_per_second / 1e12:.3g} TFLOP/s")
    limits = workloads.Limits(**report.content["limits"])
    sizes = rows.TINY if dry else rows.Sizes()
    return rows.Bench(workers, limits, sizes, partial(print, flush=True), lambda: report.seconds_left < LATE)


def _rows(report: Report, dry: bool, workers: Workers) -> bool:
    from tests.gpu_check import rows

    bench = _bench(report, dry, workers)
    return _measure_rows(report, dry, bench, rows.rows(bench.sizes))


def _measure_rows(report: Report, dry: bool, bench: Bench, wanted: Iterable[GPURow]) -> bool:
    """Those that are not in the report yet; whether there was time for all."""
    from tests.gpu_check import rows

    done = {row["name"] for row in report.content["rows"]}
    for row in wanted:
        if row.row.name in done:
            continue
        if report.seconds_left < ROW_SECONDS:
            report.say(f"{row.row.name}: not run, out of time")
            return False
        if dry:  # compiling takes minutes
            row = rows.without_compiling(row)
        report.say(row.row.name)
        measured = rows.measure(row, bench.workers, bench.limits, 0 if dry else 3, bench.sizes.min_rounds)
        print(rows.in_words(measured), flush=True)
        is_cut_off = report.seconds_left <= 0  # some had no time to answer
        report.add("rows", {**measured, "cut_off": is_cut_off})
        if is_cut_off:
            return False
    return True


def _kernels(report: Report, dry: bool, workers: Workers) -> bool:
    from tests.gpu_check import rows

    bench = _bench(report, dry, workers)
    report.say("convolutions alone, ours and cuDNN's (share of their limit)")
    return _measure_convolutions(report, "kernels", partial(rows.kernels, bench, ("ours", "channels_last")))


def _tiles(report: Report, dry: bool, workers: Workers) -> bool:
    from genimg_fast.backends import cuda
    from tests.gpu_check import rows

    bench = _bench(report, dry, workers)
    report.say("convolutions alone, by each tile")
    names = [name for name, (by_wgmma, _) in cuda.TILES.items() if not by_wgmma]
    return _measure_convolutions(report, "tiles", partial(rows.tiles, bench, names))


def _measure_convolutions(report: Report, section: str, measure: Callable[[Container[str]], Iterator[dict]]) -> bool:
    """Those that are not in that section of the report yet; whether there was time for all."""
    for measured in measure({kernel["name"] for kernel in report.content[section]}):
        report.add(section, measured)
    return report.seconds_left >= LATE


def _wgmma(report: Report, dry: bool, workers: Workers) -> bool:
    """The kernels for Hopper's own instructions are checked, one convolution of each before all others, and if they pass are timed."""
    import torch

    from genimg_fast.backends import cuda
    from tests.gpu_check import rows, sanitizer
    from tests.gpu_check.subject import BY_WGMMA, CANARY

    if torch.cuda.get_device_capability()[0] != 9:
        return True
    if report.seconds_left < CANARY_SECONDS + LATE:
        return False
    report.say("kernels by wgmma")

    def passed(subject: str) -> bool:
        return all(check["ok"] for check in report.content["checks"][subject].values())

    _run_subjects(report, [CANARY], CANARY_SECONDS, dry)
    if passed(CANARY) and not _run_subjects(report, BY_WGMMA, CHECK_SECONDS, dry):
        return False
    report.add("wgmma", all(passed(subject) for subject in (CANARY, *BY_WGMMA)))
    if not report.content["wgmma"]:
        return True
    bench = _bench(report, dry, workers)
    names = [name for name, (by_wgmma, _) in cuda.TILES.items() if by_wgmma]
    return (
        _measure_rows(report, dry, bench, [rows.by_wgmma(row) for row in rows.of_generators(bench.sizes)])
        and _measure_convolutions(report, "kernels by wgmma", partial(rows.kernels, bench, ("ours_by_wgmma",)))
        and _measure_convolutions(report, "tiles by wgmma", partial(rows.tiles, bench, names))
        and (dry or _sanitize(report, sanitizer.WGMMA, dry))
    )


# In this order: the kernels that may hang the GPU come last.
SECTIONS: dict[str, Callable[[Report, bool, Workers], bool]] = {
    "checks": _checks,
    "sanitizer": _sanitizer,
    "rows": _rows,
    "kernels": _kernels,
    "tiles": _tiles,
    "wgmma": _wgmma,
}


def conclude(report: Report) -> int:
    passed, failed = gpu_ledger.counts(report.content)
    rows = report.content.get("rows", [])
    if rows:
        print(f"\n{gpu_ledger.table(report.content)}\n", flush=True)
    report.say(f"{passed} checks passed, {len(failed)} failed: {report.path}")
    if left := [name for name in SECTIONS if name not in report.content["finished"]]:
        report.say(f"not finished: {', '.join(left)}; to go on: --continue {report.path}")
    for name in [*failed, *report.content["failed"]]:
        print(f"FAILED {name}")
    # The simulated GPU has no profiler, which counts launches.
    missing = any("ours" in row["failed"] or (row["not_measured"] and not report.content["dry_run"]) for row in rows)
    return 1 if failed or missing or report.content["failed"] else 0


if __name__ == "__main__":
    os.chdir(libraries.ROOT)
    sys.exit(main())
