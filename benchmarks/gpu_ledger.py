# SPDX-License-Identifier: MIT
"""What has been verified on which GPU, and how fast it was there: README's part on GPUs, from the reports of `make gpu-check`."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# What the CUDA library is compiled from; of csrc/cpu, the headers that csrc/ops/loss.h and tensor.h include.
_SOURCES = ("csrc/cuda/*", "csrc/common/*", "csrc/ops/*_cuda.cpp", "csrc/ops/*.h")
_SOURCES += ("csrc/cpu/aligned_array.h", "csrc/cpu/kept_block.h")

_NONE = """The CUDA kernels compile for sm_80 to sm_100 and run, thread by thread, on the CPU in the tests: as C++ (`tests/cuda_on_cpu`), as the
PTX that nvcc makes of them (`tests/ptx_on_cpu`), and with all that calls them on a simulated GPU (`tests/simulated_gpu`). They have
*not yet run on silicon*. `make gpu-check` does that, in eight minutes, on any machine with an NVIDIA GPU: it checks every op and
measures it against PyTorch, and writes the report from which this part is made."""


def source_hash(root: Path = ROOT) -> str:
    """Of the CUDA kernels' sources: paths and contents."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in _SOURCES for path in root.glob(pattern)):
        name = path.relative_to(root).as_posix().encode()
        content = path.read_bytes()
        digest.update(b"%d %s %d " % (len(name), name, len(content)) + content)
    return digest.hexdigest()[:16]


def is_gpu_report(report: dict[str, Any]) -> bool:
    return report.get("kind") == "gpu-check" and not report["dry_run"]


def section(reports: list[dict[str, Any]], sources: str) -> str:
    """README's part on GPUs; `sources`: the hash of the sources as they are."""
    if not reports:
        return _NONE
    ledger = ["| GPU | checked | torch, CUDA | checks | state |", "|---|---|---|---|---|"]
    ledger += [_ledger_line(report, sources) for report in reports]
    return "\n\n".join(["\n".join(ledger), *(table(r) for r in reports if r.get("rows"))])


def _ledger_line(report: dict[str, Any], sources: str) -> str:
    passed, failed = counts(report)
    if report["source_hash"] != sources:
        state = "*not verified since*: the CUDA sources have changed"
    elif failed or not report["complete"]:
        state = "**" + "; ".join([*failed, *["cut off"] * (not report["complete"])]) + "**"
    else:
        state = "verified"
    commit = report["machine"]["commit"]
    checked = report["machine"]["date"] + (f", commit {commit}" if commit else "")
    versions = f"{report['machine']['versions']['torch']}, {report['cuda']}"
    return f"| {report['device']} | {checked} | {versions} | {passed} passed, {len(failed)} failed | {state} |"


def counts(report: dict[str, Any]) -> tuple[int, list[str]]:
    """How many checks passed, and the names of those that failed."""
    named = {
        f"{subject}: {name}": c["ok"] for subject, checks in report["checks"].items() for name, c in checks.items()
    }
    named["compute-sanitizer"] = report.get("sanitizer", {}).get("ok")
    return sum(ok is True for ok in named.values()), [name for name, ok in named.items() if ok is False]


def table(report: dict[str, Any]) -> str:
    limits = report["limits"]
    lines = [
        f"{report['device']}: copies {limits['bytes_per_second'] / 1e12:.2f} TB/s, multiplies bf16 matrices at "
        f"{limits['flops_per_second'] / 1e12:.0f} TFLOP/s.",
        "",
        "| | eager | the best alternative | genimg_fast | times as fast as the best (quartiles) | gate | goals |",
        "|---|---|---|---|---|---|---|",
        *(_row(row) for row in report["rows"]),
    ]
    if "accuracy" in report:
        a = report["accuracy"]
        told = f"at most **{a['factor']:.2f}** times cuDNN's ({a['mode']})"
        lines.append(
            f"| error of DCGAN's convolutions against float64 | 1 | | | {told} | {_met(2, a['factor'] <= 2)} | |"
        )
    return "\n".join(lines)


def _row(row: dict[str, Any]) -> str:
    from genimg_fast.benchmark.runtimes import RUNTIMES

    times = {name: f"{r['milliseconds']['median']:.3g} ms" for name, r in row["runtimes"].items()}
    best, ratio = row["best"], row.get("ratio")
    cells = (
        row["name"],
        times.get("eager", ""),
        f"{times[best]}, {RUNTIMES[best].label}" if best else "",
        times.get("ours", "failed"),
        f"**{ratio['median']:.2f}** ({ratio['low']:.2f} to {ratio['high']:.2f})" if ratio else "",
        _met(row["gate"], row["gate_met"]) if "gate" in row else "",
        "; ".join(f"{g['what']} {g['value']:.3g} (goal {_met(g['goal'], g['met'])})" for g in row["goals"]),
    )
    return f"| {' | '.join(cells)} |"


def _met(target: float, met: bool) -> str:
    return f"{target:.3g} {'met' if met else 'not met'}"
