# SPDX-License-Identifier: MIT
"""The rows with their gates and goals, and the kernels against the limits of the card."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import torch

from genimg_fast.benchmark import suite
from genimg_fast.benchmark.convolution import Convolution
from genimg_fast.benchmark.functions import BatchNormAct, ELBOLoss, ReparameterizeWithKL
from genimg_fast.benchmark.memory import SavedBytes
from genimg_fast.benchmark.models import GeneratorInference, GeneratorTraining
from genimg_fast.benchmark.runtimes import RUNTIMES, TorchCompile
from genimg_fast.benchmark.turns import prepare, take_turns
from genimg_fast.benchmark.worker import RuntimeFailedError
from tests.gpu_check.cases import LAYERS
from tests.gpu_check.workloads import InDtype, KernelAlone, Launches, Limits

Say = Callable[[str], None]

EAGER = ("eager", "channels_last")
FEWER_LAUNCHES = "launches fewer than torch.compile"
COMPILED = ("torch_compile", "max_autotune", "max_autotune_channels_last")


@dataclass(frozen=True)
class Goal:
    """A figure of ours that is no ratio of times."""

    what: str
    """"images/s", "microseconds", "launches", FEWER_LAUNCHES, "share of copy" or "saved bytes" (as a share of eager's)."""
    goal: float

    def is_met(self, value: float) -> bool:
        return value <= self.goal if self.what in ("microseconds", "launches", "saved bytes") else value >= self.goal


@dataclass(frozen=True)
class GPURow:
    row: suite.Row
    gate: float | None
    """How many times as fast as the best alternative."""
    goals: tuple[Goal, ...]


def rows(sizes: Sizes) -> list[GPURow]:
    s, bf16, f32 = sizes, sizes.half, torch.float32
    inference = [InDtype(GeneratorInference(n, *s.generator), bf16) for n in (s.large_batch, s.small_batch)]
    training = InDtype(GeneratorTraining(s.training_batch, *s.generator), bf16)
    elbo, norm = InDtype(ELBOLoss(s.elbo), f32), InDtype(BatchNormAct(s.batch_norm), bf16)
    latents = InDtype(ReparameterizeWithKL(s.latents), f32)
    function = ("eager", "torch_compile", "max_autotune")
    return [
        GPURow(
            suite.Row(f"DCGAN-64 generator, eval, bf16, B={s.large_batch}", inference[0], (*EAGER, *COMPILED)),
            1.5,
            (Goal("images/s", 2.4e6),),
        ),
        GPURow(
            suite.Row(
                f"DCGAN-64 generator, eval, bf16, B={s.small_batch}, CUDA graph",
                inference[1],
                (*EAGER, "torch_compile", "reduce_overhead", "max_autotune_channels_last"),
            ),
            1.3,
            (Goal("microseconds", 30), Goal("launches", 5)),
        ),
        GPURow(
            suite.Row(
                f"DCGAN-64 generator, training forward+backward, bf16, B={s.training_batch}",
                training,
                (*EAGER, "torch_compile", "max_autotune_channels_last"),
            ),
            1.2,
            (Goal("images/s", 0.6e6), Goal("saved bytes", 0.55)),
        ),
        GPURow(
            suite.Row(f"elbo_loss, {_times(s.elbo)}, forward+backward", elbo, function),
            1.3,
            (Goal("share of copy", 0.8),),
        ),
        GPURow(
            suite.Row(f"batch_norm_act, bf16, {_times(s.batch_norm)}, forward+backward", norm, (*function, "channels_last")),
            1.2,
            (Goal("share of copy", 0.8),),
        ),
        GPURow(
            suite.Row(f"reparameterize + KL, {_times(s.latents)}, forward+backward", latents, function),
            None,
            (Goal(FEWER_LAUNCHES, 1), Goal("launches", 2)),
        ),
    ]  # fmt: skip


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


@dataclass(frozen=True)
class Sizes:
    large_batch: int = 1024
    small_batch: int = 64
    training_batch: int = 512
    generator: tuple[int, int] = (64, 64)  # image size, width
    elbo: tuple[int, ...] = (2048, 3, 64, 64)
    batch_norm: tuple[int, ...] = (512, 128, 32, 32)
    latents: tuple[int, ...] = (4096, 128)
    half: torch.dtype = torch.bfloat16
    kernel_batch: int = 1024
    every_kernel: int = 1
    min_rounds: int = 5


TINY = Sizes(4, 2, 4, (32, 4), (8, 3, 8, 8), (8, 16, 8, 8), (16, 8), torch.bfloat16, 1, 6, 1)
"""For the simulated GPU."""


def without_compiling(row: GPURow) -> GPURow:
    kept = row.row._replace(
        alternatives=tuple(a for a in row.row.alternatives if not issubclass(RUNTIMES[a], TorchCompile))
    )
    goals = tuple(goal for goal in row.goals if goal.what != FEWER_LAUNCHES)
    return replace(row, row=kept, goals=goals)


def of_generators(sizes: Sizes) -> list[GPURow]:
    """Those that run convolutions."""
    return [row for row in rows(sizes) if isinstance(row.row.workload.workload, GeneratorInference | GeneratorTraining)]


def by_wgmma(row: GPURow) -> GPURow:
    """Ours on Hopper's own instructions, in turns with ours as it is shipped."""
    row_by_wgmma = row.row._replace(name=f"{row.row.name}, by wgmma", alternatives=("ours_by_wgmma",))
    return GPURow(row_by_wgmma, None, ())


def measure(row: GPURow, workers: suite.Workers, limits: Limits, seconds: float, min_rounds: int) -> dict[str, Any]:
    """The row of the report: times of all runtimes, each goal's figure, and what is launched where that is counted."""
    measured = suite.measure_row(row.row, workers, seconds, min_rounds)
    for name in measured["failed"]:
        workers.end(name)
    if row.gate is not None and measured["best"] is not None:
        measured |= {"gate": row.gate, "gate_met": measured["ratio"]["median"] >= row.gate}
    measured |= {"goals": [], "not_measured": {}}
    if "ours" not in measured["runtimes"]:
        return measured
    for goal in row.goals:
        try:
            value = _figure(goal.what, row.row.workload, measured, workers, limits)
        except RuntimeFailedError as error:
            measured["not_measured"][goal.what] = str(error)
            workers.end("ours")
            continue
        measured["goals"].append({"what": goal.what, "goal": goal.goal, "value": value, "met": goal.is_met(value)})
    if isinstance(row.row.workload.workload, GeneratorInference):
        measured["share_of_roofline"] = _roofline_seconds(row.row.workload, limits) / _seconds(measured)
    return measured


def _seconds(measured: dict[str, Any]) -> float:
    return measured["runtimes"]["ours"]["milliseconds"]["median"] / 1e3


def _figure(what: str, workload: Any, measured: dict[str, Any], workers: suite.Workers, limits: Limits) -> float:
    if what == "images/s":
        return workload.images / _seconds(measured)
    if what == "microseconds":
        return _seconds(measured) * 1e6
    if what == "share of copy":
        return workload.bytes / _seconds(measured) / limits.bytes_per_second
    if what == "saved bytes":
        question = SavedBytes(workload.workload, workload.dtype)
        ours, eager = (workers.get(name, None).ask("call", question) for name in ("ours", "eager"))
        return ours / eager
    measured["launched"] = workers.get("ours", None).ask("call", Launches(workload))
    ours = len(measured["launched"])
    if what == "launches":
        return ours
    return len(workers.get("torch_compile", None).ask("call", Launches(workload))) - ours


def _roofline_seconds(workload: InDtype, limits: Limits) -> float:
    """What the layers of DCGAN-64's generator take at least, one after the other."""
    layers = _convolutions("forward", "conv_transpose2d_bn_act", workload.workload.images)
    return sum(KernelAlone(layer, workload.dtype).floor(limits) for layer in layers)


class Bench(NamedTuple):
    """What it takes to measure a kernel."""

    workers: suite.Workers
    limits: Limits
    sizes: Sizes
    say: Say
    is_late: Callable[[], bool]


def kernels(bench: Bench, runtimes: Sequence[str], done: Container[str]) -> Iterator[dict]:
    """Each convolution of DCGAN-64 in the directions that are ours, against cuDNN's, both alone and as graphs.

    Args:
        done: the names of those that are measured already.
    """
    workers, limits, sizes, say, is_late = bench
    for direction in ("forward", "data gradient"):
        for op in LAYERS:
            for convolution in _convolutions(direction, op, sizes.kernel_batch)[:: sizes.every_kernel]:
                if str(convolution) in done:
                    continue
                if is_late():
                    return
                kernel = KernelAlone(convolution, sizes.half)
                taking_part = {name: workers.get(name, None) for name in runtimes}
                checked, failed = prepare(taking_part, kernel)
                for name in failed:
                    workers.end(name)
                turns = take_turns(
                    {n: taking_part[n] for n in checked}, seconds=0, block_seconds=0.02, min_rounds=sizes.min_rounds
                )
                milliseconds = {n: min(turns.seconds(n)) * 1e3 for n in turns.blocks}
                floor = kernel.floor(limits) * 1e3
                measured = {"name": str(convolution), "floor_milliseconds": floor, "milliseconds": milliseconds}
                say(_kernel_in_words(measured, failed))
                yield {**measured, "failed": {**failed, **turns.failed}}


def tiles(bench: Bench, names: Sequence[str], done: Container[str]) -> Iterator[dict]:
    """Each layer that leaves a choice of tile, by each of them: what the costs in `choose_tile` should say.

    Of a small batch too, whose blocks are no more than the multiprocessors: there it may pay that two of them share one.

    Args:
        done: the names of the layers that are measured already.
    """
    workers, limits, sizes, say, is_late = bench
    for images, op in product((sizes.kernel_batch, sizes.small_batch), LAYERS):
        for convolution in [c for c in _convolutions("forward", op, images) if c.cin % 8 == 0][:: sizes.every_kernel]:
            name = f"{convolution}, B={images}"
            if name in done:
                continue
            kernel = KernelAlone(convolution, sizes.half)
            measured: dict[str, Any] = {
                "name": name,
                "floor_milliseconds": kernel.floor(limits) * 1e3,
                "milliseconds": {},
                "failed": {},
            }
            for tile in names:
                if is_late():
                    return
                worker = workers.get("ours", None)
                try:
                    worker.ask("prepare", replace(kernel, tile=tile))
                    seconds = min(worker.ask("run", 0.02).seconds for _ in range(sizes.min_rounds))
                    measured["milliseconds"][tile] = seconds * 1e3
                except RuntimeFailedError as error:
                    measured["failed"][tile] = str(error)
                    workers.end("ours")
            say(_kernel_in_words(measured, measured["failed"]))
            yield measured


def _convolutions(direction: str, op: str, images: int) -> list[Convolution]:
    return [Convolution(direction, op == "conv_transpose2d_bn_act", images, *layer) for layer in LAYERS[op]]


def _kernel_in_words(kernel: dict[str, Any], failed: dict[str, str]) -> str:
    times = kernel["milliseconds"]
    told = [f"{name} {ms * 1e3:.0f} us ({kernel['floor_milliseconds'] / ms:.0%})" for name, ms in times.items()]
    told += [f"{name}: {reason}" for name, reason in failed.items()]
    return f"  {kernel['name']}: {', '.join(told)}"


def in_words(measured: dict[str, Any]) -> str:
    lines = [suite.row_in_words({name: value for name, value in measured.items() if name != "gate"})]
    if "gate" in measured:
        lines.append(f"  gate {measured['gate']:g}: {'met' if measured['gate_met'] else 'NOT met'}")
    lines += [f"  {goal_in_words(goal)}" for goal in measured["goals"]]
    lines += [f"  {what}: {reason}" for what, reason in measured["not_measured"].items()]
    lines += [f"    launched: {name}" for name in measured.get("launched", [])]
    if "share_of_roofline" in measured:
        lines.append(f"  {measured['share_of_roofline']:.0%} of the roofline")
    return "\n".join(lines)


def goal_in_words(goal: dict[str, Any]) -> str:
    return f"{goal['what']}: {goal['value']:.3g}, goal {goal['goal']:.3g} {'met' if goal['met'] else 'not met'}"
