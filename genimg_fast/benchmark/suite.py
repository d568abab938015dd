# SPDX-License-Identifier: MIT
"""The rows of the benchmark with their gates and goals, and the run over them that makes a report."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from genimg_fast.benchmark import accuracy, kernels, sweeps
from genimg_fast.benchmark.functions import BCELoss, ELBOLoss, Reparameterize
from genimg_fast.benchmark.memory import SavedBytes
from genimg_fast.benchmark.models import GANStep, GeneratorInference, GeneratorTraining, VAEStep
from genimg_fast.benchmark.runtimes import RUNTIMES
from genimg_fast.benchmark.turns import MIN_ROUNDS, Quartiles, Turns, prepare, quartiles, take_turns
from genimg_fast.benchmark.worker import Checked, RuntimeFailedError, Worker
from genimg_fast.benchmark.workloads import Workload

SCHEMA = 1

INFERENCE = ("eager", "folded_channels_last", "inductor_freezing", "onnxruntime", "openvino")
TRAINING = ("eager", "channels_last", "torch_compile")
FUNCTION = ("eager", "torch_compile")


class Target(NamedTuple):
    gate: float
    """Must be reached."""
    goal: float
    """Should be."""


class Row(NamedTuple):
    name: str
    workload: Workload
    alternatives: tuple[str, ...]
    target: Target | None = None
    """How many times as fast as the best alternative."""
    isa: str | None = None
    """That all are held to."""


CPU_ROWS = (
    Row("DCGAN-64 generator, eval, B=64", GeneratorInference(64), INFERENCE, Target(2.5, 3.3)),
    Row("DCGAN-64 generator, eval, B=16", GeneratorInference(16), INFERENCE, Target(2.2, 3.0)),
    Row("DCGAN-64 generator, eval, B=1", GeneratorInference(1), INFERENCE, Target(1.6, 2.3)),
    Row("DCGAN-64 generator, eval, B=64, AVX2", GeneratorInference(64), INFERENCE, Target(1.8, 2.5), "avx2"),
    Row("DCGAN-64 generator, eval, B=16, AVX2", GeneratorInference(16), INFERENCE, Target(1.8, 2.5), "avx2"),
    Row("DCGAN-64 generator, eval, B=1, AVX2", GeneratorInference(1), INFERENCE, Target(1.6, 2.3), "avx2"),
    Row("DCGAN-64 generator, training forward+backward, B=64", GeneratorTraining(64), TRAINING, Target(1.9, 3.0)),
    Row("DCGAN-64 training step with Adam, B=64", GANStep(64), TRAINING, Target(1.6, 2.5)),
    Row("convolutional VAE training step with Adam, 64x64, B=64", VAEStep(64), TRAINING, Target(1.4, 2.2)),
    Row("elbo_loss 512x3x64x64, forward+backward", ELBOLoss((512, 3, 64, 64)), FUNCTION, Target(2.0, 4.0)),
    Row("bce_loss 512x3x64x64, forward+backward", BCELoss((512, 3, 64, 64)), FUNCTION, Target(2.0, 4.0)),
    Row("reparameterize 4096x128, forward+backward", Reparameterize((4096, 128)), FUNCTION, Target(1.5, 3.0)),
)
QUICK_ROWS = tuple(
    row._replace(alternatives=("eager", "channels_last") if row.workload.images else ("eager",), target=None)
    for row in CPU_ROWS
    if row.isa is None and row.workload != GeneratorInference(16)
)

SAVED_BYTES = "bytes saved for backward by the generator in training, B=64"
ACCURACY = "error of convolutions against float64"
KERNELS = "kernel shares"
SWEEPS = {f"size sweep: {name}": points for name, points in sweeps.SWEEPS.items()}
CPU_PARTS = (SAVED_BYTES, ACCURACY, KERNELS, *SWEEPS)
"""What the suite "cpu" measures besides its rows."""

SAVED_BYTES_WORKLOAD = GeneratorTraining(64)
SAVED_BYTES_TARGET = Target(0.75, 0.55)  # of eager's
ACCURACY_TARGETS = {"winograd": Target(6.0, 3.0), "plain": Target(2.0, 1.0)}  # times eager's error

Say = Callable[[str], None]


class Workers:
    """Starts each worker when it is first wanted and keeps it.  A context manager, which ends them all."""

    def __init__(self, threads: int, device: str = "cpu", deadline: float = math.inf) -> None:
        self._threads, self._device, self._deadline = threads, device, deadline
        self._isa: str | None = None
        self._running: dict[str, Worker] = {}

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, runtime: str, isa: str | None) -> Worker:
        """The worker of that runtime.  Those of one instruction set end as another one is asked for: each takes memory."""
        if isa != self._isa:
            self.close()
            self._isa = isa
        worker = self._running.get(runtime)
        if worker is None or not worker.alive:
            worker = self._running[runtime] = Worker(
                runtime, threads=self._threads, isa=isa, device=self._device, deadline=self._deadline
            )
        return worker

    def end(self, runtime: str) -> None:
        """Ends the worker of that runtime, if any: after a fault its GPU context is of no more use."""
        worker = self._running.pop(runtime, None)
        if worker is not None:
            worker.close()

    def close(self) -> None:
        for worker in self._running.values():
            worker.close()
        self._running.clear()


def held_to(rows: Sequence[Row], isa: str | None) -> tuple[Row, ...]:
    """The rows with everything held to `isa`; where two become the same, the one that was made for it stays."""
    if isa is None:
        return tuple(rows)
    made_for_it = {row.workload for row in rows if row.isa == isa}
    return tuple(row._replace(isa=isa) for row in rows if row.isa == isa or row.workload not in made_for_it)


def measure_row(row: Row, workers: Workers, seconds: float, min_rounds: int = MIN_ROUNDS) -> dict[str, Any]:
    """Checks, then times ours and the alternatives that are installed; what fails is told and left out."""
    failed = {name: "not installed" for name in row.alternatives if not RUNTIMES[name].installed()}
    names = ["ours", *(name for name in row.alternatives if name not in failed)]
    taking_part = {name: workers.get(name, row.isa) for name in names}
    checked, reasons = prepare(taking_part, row.workload)
    failed.update(reasons)
    if "ours" in checked:
        turns = take_turns({name: taking_part[name] for name in checked}, seconds=seconds, min_rounds=min_rounds)
        failed.update(turns.failed)
    else:
        turns = Turns({}, {})
    return report_row(row, checked, turns, failed)


def report_row(row: Row, checked: dict[str, Checked], turns: Turns, failed: dict[str, str]) -> dict[str, Any]:
    """The row of the report.  Without ours, or without any alternative to compare with, it has no ratio."""
    result: dict[str, Any] = {"name": row.name, "isa": row.isa, "images": row.workload.images, "failed": failed}
    result["runtimes"] = {
        name: {
            "milliseconds": Quartiles(*(1e3 * s for s in quartiles(turns.seconds(name))))._asdict(),
            "rounds": len(turns.blocks[name]),
            "error_over_tolerance": checked[name].error,
            "idle_cpu_milliseconds": turns.idle_cpu_seconds(name) * 1e3,
            "held_to_isa": row.isa is None or RUNTIMES[name].obeys_isa,
        }
        for name in turns.blocks
    }
    if "ours" not in turns.blocks:
        return {**result, "best": None}
    rivals = [name for name, r in result["runtimes"].items() if name != "ours" and r["held_to_isa"]]
    if not rivals:
        return {**result, "best": None}
    for name in turns.blocks:
        result["runtimes"][name]["times_as_long_as_ours"] = turns.ratio(name, over="ours")._asdict()
    best = min(rivals, key=lambda name: result["runtimes"][name]["milliseconds"]["median"])
    ratio = result["runtimes"][best]["times_as_long_as_ours"]
    return {**result, "best": best, "ratio": ratio, **_verdict(row.target, ratio["median"], higher=True)}


def _verdict(target: Target | None, value: float, *, higher: bool) -> dict[str, Any]:
    if target is None:
        return {}
    gate_met, goal_met = ((value >= limit) if higher else (value <= limit) for limit in target)
    return {**target._asdict(), "gate_met": gate_met, "goal_met": goal_met}


def run(
    rows: Sequence[Row], parts: Sequence[str], *, threads: int, seconds: float, isa: str | None, device: str, say: Say
) -> dict[str, Any]:
    """Measures the rows, then the parts of `CPU_PARTS` that are asked for."""
    rows = held_to(rows, isa)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "threads": threads,
        "isa": isa,
        "rows": [],
    }
    with Workers(threads, device) as workers:
        for i, row in enumerate(rows, 1):
            say(f"[{i}/{len(rows)}] {row.name}: {'; '.join(RUNTIMES[a].label for a in row.alternatives)}")
            report["rows"].append(measure_row(row, workers, seconds))
            say(row_in_words(report["rows"][-1]))
        for part in parts:
            say(part)
            if part == SAVED_BYTES:
                report["saved_bytes"] = measure_saved_bytes(workers, isa)
                say(saved_bytes_in_words(report["saved_bytes"]))
            elif part == ACCURACY:
                report["accuracy"] = measure_accuracy(workers.get("ours", isa))
                say(accuracy_in_words(report["accuracy"]))
            elif part == KERNELS:
                report["kernels"] = measure_kernels(workers.get("ours", isa), say)
            else:
                pair = {name: workers.get(name, isa) for name in ("ours", "eager")}
                points = [sweeps.measure(pair, size, block) for size, block in SWEEPS[part].items()]
                sweep = {"points": points, "cliffs": sweeps.cliffs(points)}
                report.setdefault("sweeps", {})[part.removeprefix("size sweep: ")] = sweep
                say(sweep_in_words(sweep))
    return report


def measure_saved_bytes(workers: Workers, isa: str | None) -> dict[str, Any]:
    saved = {name: workers.get(name, isa).ask("call", SavedBytes(SAVED_BYTES_WORKLOAD)) for name in ("ours", "eager")}
    ratio = saved["ours"] / saved["eager"]
    return {**saved, "ratio": ratio, **_verdict(SAVED_BYTES_TARGET, ratio, higher=False)}


def measure_accuracy(worker: Worker) -> dict[str, Any]:
    errors = [worker.ask("call", accuracy.Errors(c)) for c in accuracy.convolutions()]
    result: dict[str, Any] = {"errors": errors}
    for name, target in ACCURACY_TARGETS.items():
        worst = max(errors, key=lambda e: accuracy.factor(e, name))
        factor = accuracy.factor(worst, name)
        result[name] = {"worst": worst["name"], "factor": factor, **_verdict(target, factor, higher=False)}
    return result


def measure_kernels(worker: Worker, say: Say) -> dict[str, Any]:
    limits = worker.ask("call", kernels.measure_limits)
    say(f"  SGEMM {limits.flops_per_second / 1e9:.0f} GFLOP/s, copy {limits.bytes_per_second / 1e9:.1f} GB/s")
    result: dict[str, Any] = {"limits": limits._asdict(), "kernels": [], "failed": {}}
    for name, workload in kernels.KERNELS.items():
        try:
            result["kernels"].append(kernels.measure(worker, name, workload, limits))
        except RuntimeFailedError as error:
            result["failed"][name] = str(error)
            say(f"  {name}: {error}")
            continue
        say(f"  {name}: {result['kernels'][-1]['share']:.0%} of {result['kernels'][-1]['limit']}")
    return result


# --- in words --------------------------------------------------------------------------------------------------------


def row_in_words(row: dict[str, Any]) -> str:
    lines = []
    for name, r in sorted(row["runtimes"].items(), key=lambda item: item[1]["milliseconds"]["median"]):
        held = "" if r["held_to_isa"] else f" (cannot be held to {row['isa']}: not compared)"
        lines.append(f"  {RUNTIMES[name].label:32} {r['milliseconds']['median']:10.4g} ms{held}")
    lines += [f"  {RUNTIMES[name].label:32} {reason}" for name, reason in row["failed"].items()]
    if row["best"] is not None:
        ratio = row["ratio"]
        lines.append(
            f"  {ratio['median']:.2f} times as fast ({ratio['low']:.2f} to {ratio['high']:.2f}) as the best, "
            f"{RUNTIMES[row['best']].label}{verdict_in_words(row)}"
        )
    return "\n".join(lines)


def verdict_in_words(result: dict[str, Any]) -> str:
    if "gate" not in result:
        return ""
    return "".join(f"; {t} {result[t]:g} {'met' if result[f'{t}_met'] else 'NOT met'}" for t in Target._fields)


def saved_bytes_in_words(saved: dict[str, Any]) -> str:
    megabytes = {name: saved[name] / 1e6 for name in ("ours", "eager")}
    return f"  {saved['ratio']:.2f} of eager's ({megabytes['ours']:.1f} of {megabytes['eager']:.1f} MB){verdict_in_words(saved)}"


def accuracy_in_words(result: dict[str, Any]) -> str:
    return "\n".join(
        f"  {name}: at most {r['factor']:.2f} times that of PyTorch's kernel ({r['worst']}){verdict_in_words(r)}"
        for name, r in ((name, result[name]) for name in ACCURACY_TARGETS)
    )


def sweep_in_words(sweep: dict[str, Any]) -> str:
    if not sweep["cliffs"]:
        return f"  no size costs more than {sweeps.CLIFF} times as much for a FLOP as its neighbours"
    return "\n".join(
        f"  {c['size']} costs {c['times_worse']['ours']:.2f} times as much for a FLOP as {c['neighbour']}"
        f" (eager: {c['times_worse'].get('eager', float('nan')):.2f})"
        for c in sweep["cliffs"]
    )
