# SPDX-License-Identifier: MIT
"""`genimg-fast bench`"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genimg_fast.cli import _common

if TYPE_CHECKING:
    import torch

    from genimg_fast.cli._workloads import Workload

LARGEST_DIFFERENCE = {"cpu": 1e-3, "cuda": 2e-2}  # relative; on CUDA, convolutions may run in TF32


def add_parser(subparsers) -> argparse.ArgumentParser:
    parser = _common.add_parser(
        subparsers,
        "bench",
        "Time the fused kernels against eager PyTorch, in alternating blocks of one run.",
        "genimg-fast bench --suite quick --out runs/bench",
    )
    parser.add_argument(
        "--suite", choices=("quick", "full"), default="quick", help="how much to time (default: %(default)s)"
    )
    parser.add_argument("--match", default="", metavar="TEXT", help="only the workloads whose name contains TEXT")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="for each workload, warm-up not counted (default: %(default)s)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/bench"),
        metavar="DIR",
        help="for bench.json and bench.png (default: %(default)s)",
    )
    _common.add_device(parser.add_argument_group("running"))
    return parser


def run(args: argparse.Namespace) -> None:
    from genimg_fast import _extension
    from genimg_fast.cli import _machine, _workloads

    device = _common.choose_device(args.device)
    library = _extension.status(device.type)
    if not library.loaded:
        raise _common.CommandError(f"nothing to compare: no {device.type} kernels ({library.detail})")
    selected = [
        (workload, passes)
        for workload in _workloads.WORKLOADS
        for passes in (workload.quick if args.suite == "quick" else workload.passes)
        if args.match in workload.name
    ]
    if not selected:
        raise _common.CommandError(f"--match {args.match!r}: no workload of the {args.suite} suite is called so")

    machine = _machine.describe()
    print(f"{_machine.in_words(machine)}\n")
    results = []
    for workload, passes in selected:
        results.append(measure(workload, passes, device, args.seconds))
        print(in_words(results[-1]), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine, "device": device.type, "suite": args.suite, "results": results}
    (args.out / "bench.json").write_text(json.dumps(report, indent=1) + "\n")
    draw(report, args.out / "bench.png")
    print(f"\n{args.out / 'bench.json'} and {args.out / 'bench.png'} written")


def measure(workload: Workload, passes: str, device: torch.device, seconds: float) -> dict:
    """Checks that the kernels compute what the reference does, then times them against eager PyTorch.

    Raises:
        CommandError: they do not.
    """
    from genimg_fast import _backend, _timing
    from genimg_fast.cli import _workloads

    difference = first_difference(workload, passes, device)
    if not difference <= LARGEST_DIFFERENCE[device.type]:
        raise _common.CommandError(f"{workload.name}, {passes}: native differs from the reference by {difference:.1e}")

    prepared = {name: _workloads.prepare(workload, passes, name, device) for name in ("native", "eager")}
    with _backend.record_decisions() as decisions:
        prepared["native"].call()
    timing = _timing.time_alternately({name: p.call for name, p in prepared.items()}, seconds=seconds, device=device)
    amount = prepared["native"].amount(workload)
    result: dict[str, Any] = {"group": workload.group, "name": workload.name, "passes": passes, "unit": workload.unit}
    for name in prepared:
        result[name] = {"milliseconds": timing.median(name) * 1e3, "rate": amount / timing.median(name)}
    return {
        **result,
        "speedup": timing.speedup("native", over="eager")._asdict(),
        "rounds": len(timing.seconds["native"]),
        "largest_difference": difference,
        "not_native": sorted({f"{d.op}: {d.reason}" for d in decisions if not d.native}),
    }


def first_difference(workload: Workload, passes: str, device: torch.device | str) -> float:
    """The largest relative difference of native outputs and gradients from the reference's, on the same noise."""
    import torch

    from genimg_fast.cli import _workloads

    results = []
    for backend in ("native", "reference"):
        prepared = _workloads.prepare(workload, passes, backend, device)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            results.append(prepared.call())
    return largest_difference(*results)


def largest_difference(actual: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    """Over all tensors, relative to the largest value of each; infinite where one is not finite."""
    worst = 0.0
    for a, e in zip(actual, expected, strict=True):
        difference = ((a - e).abs().max() / e.abs().max().clamp(min=1e-30)).item()
        worst = max(worst, difference) if difference == difference else float("inf")
    return worst


def in_words(result: dict) -> str:
    speedup, native, eager = result["speedup"], result["native"], result["eager"]
    return (
        f"{result['name']}, {result['passes']}: {speedup['median']:.2f} times as fast "
        f"({speedup['low']:.2f} to {speedup['high']:.2f}); "
        f"{native['milliseconds']:.3g} ms against {eager['milliseconds']:.3g}; "
        f"{native['rate']:.3g} {result['unit']} against {eager['rate']:.3g}"
        + "".join(f"\n  not native: {reason}" for reason in result["not_native"])
    )


def draw(report: dict, path: Path) -> None:
    """Bars of the median speedup; whiskers reach from the lower to the upper quartile."""
    from matplotlib.figure import Figure

    from genimg_fast.cli import _machine

    results = report["results"][::-1]
    medians = [r["speedup"]["median"] for r in results]
    below = [r["speedup"]["median"] - r["speedup"]["low"] for r in results]
    above = [r["speedup"]["high"] - r["speedup"]["median"] for r in results]
    figure = Figure(figsize=(10, 1.2 + 0.4 * len(results)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(
        range(len(results)), medians, xerr=[below, above], color="tab:blue", height=0.6, ecolor="black", capsize=2
    )
    axes.set_yticks(range(len(results)), [f"{r['name']}, {r['passes']}" for r in results], fontsize=8)
    for row, r in enumerate(results):
        label = f" {r['speedup']['median']:.2f}  ({r['native']['rate']:.3g} {r['unit']})"
        axes.text(r["speedup"]["high"], row, label, va="center", fontsize=8)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlim(0, max([*medians, 1]) * 1.35)
    axes.set_xlabel("times as fast as eager PyTorch (median, quartiles)")
    axes.set_title(_machine.in_words(report["machine"]), fontsize=8)
    figure.savefig(path, dpi=120)
