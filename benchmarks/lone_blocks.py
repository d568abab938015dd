# SPDX-License-Identifier: MIT
"""Random convolution blocks, each alone or some in turn: the kernels beside PyTorch, and what "auto" makes of it.

The rules of `genimg_fast/ops/_speed.py` come from tables like the one this prints.  A row is a kernel and an amount of work; its
blocks have channels, sizes and batches at random.  For some minutes on a machine that does nothing else:

    python -m benchmarks.lone_blocks --mode inference --seconds 300

With --autocast both run under autocast to that dtype, where the kernels compute in float32; with --in-turn each row is of so many
blocks of one kernel, whose work is counted together.
"""

from __future__ import annotations

import argparse
import copy
import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn

import genimg_fast
from genimg_fast import _backend
from genimg_fast._block import output_size
from genimg_fast.benchmark import machine

KERNELS: list[tuple[Any, tuple[int, ...]]] = [
    *((nn.Conv2d, o) for o in ((1,), (3, 1, 1), (3, 2, 1), (4, 1, 1), (4, 2, 1), (5, 1, 2), (5, 2, 2), (7, 1, 3))),
    *((nn.ConvTranspose2d, o) for o in ((2, 2), (3, 1, 1), (3, 2, 1, 1), (4, 1), (4, 2, 1), (5, 2, 2, 1))),
]
CHANNELS = (1, 3, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512)
SIZES = (1, 2, 4, 7, 8, 14, 16, 28, 32, 64)
BATCHES = (1, 1, 2, 4, 8, 32)
LEAST, MOST = 10**6, 7 * 10**8  # multiply-adds


class Drawn(NamedTuple):
    kernel: str
    multiply_adds: int
    layers: nn.Sequential
    input: torch.Tensor


class Measured(NamedTuple):
    """How many times as fast as PyTorch."""

    kernels: float
    auto: float
    chosen: bool
    """Whether "auto" takes the kernels for the convolution."""


def draw(pick: random.Random, in_turn: int = 1) -> Iterator[Drawn]:
    while True:
        kind, options = pick.choice(KERNELS)
        n, size = pick.choice(BATCHES), pick.choice(SIZES)
        channels = [pick.choice(CHANNELS) for _ in range(in_turn + 1)]
        layers: list[nn.Module] = []
        h, w, work = size, size, 0
        for in_channels, out_channels in pairwise(channels):
            conv, before = kind(in_channels, out_channels, *options, bias=False), h * w
            h, w = output_size(conv, (n, in_channels, h, w), conv.weight.shape)
            if min(h, w) < 1 or n * h * w == 1:
                break
            work += conv.weight.numel() * n * (before if conv.transposed else h * w)
            norm = [nn.BatchNorm2d(out_channels)] if pick.random() < 0.7 else []
            layers += [conv, *norm, pick.choice([nn.ReLU(), nn.LeakyReLU(0.2), nn.Tanh()])]
        else:
            if LEAST <= work <= MOST:
                name = f"{'transposed ' if conv.transposed else ''}{conv.kernel_size[0]}, stride {conv.stride[0]}"
                yield Drawn(name, work, nn.Sequential(*layers), torch.randn(n, channels[0], size, size))


def measure(plain: nn.Module, input: torch.Tensor, training: bool) -> Measured:
    plain.train(training)
    input.requires_grad_(training)
    with torch.set_grad_enabled(training), _backend.record_decisions() as decisions:
        grad = torch.randn_like(fused(plain)(input))
    auto = times_as_fast(*(a_pass(m, input, grad) for m in (fused(plain), plain)))
    with genimg_fast.use_backend("native"):
        kernels = times_as_fast(*(a_pass(m, input, grad) for m in (fused(plain), plain)))
    return Measured(kernels, auto, decisions[0].native)


def fused(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    genimg_fast.fuse(model)
    return model


def a_pass(model: nn.Module, input: torch.Tensor, grad: torch.Tensor) -> Callable[[], object]:
    if not input.requires_grad:
        return torch.no_grad()(lambda: model(input))
    wanted = [input, *model.parameters()]
    return lambda: torch.autograd.grad(model(input), wanted, grad)


def times_as_fast(fast: Callable[[], object], slow: Callable[[], object], seconds: float = 0.1) -> float:
    """By medians of turns of a few milliseconds."""
    for _ in range(3):
        fast()
        slow()
    calls = max(1, int(0.004 / seconds_of(slow, 1)))
    turns: list[tuple[float, float]] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(turns) < 5:
        turns.append((seconds_of(fast, calls), seconds_of(slow, calls)))
    of_fast, of_slow = map(statistics.median, zip(*turns, strict=True))
    return of_slow / of_fast


def seconds_of(function: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def table(rows: dict[tuple[str, int], list[Measured]]) -> Iterator[str]:
    yield f"{'kernel':22} {'multiply-adds':13} {'blocks':>6} {'kernels':>8} {'chosen':>7} {'auto':>6} {'worst':>6}"
    for (kernel, power), measured in sorted(rows.items()):
        kernels, auto = (statistics.geometric_mean(ratios) for ratios in list(zip(*measured, strict=True))[:2])
        worst, chosen = min(m.auto for m in measured), sum(m.chosen for m in measured)
        yield f"{kernel:22} {f'from 10^{power}':13} {len(measured):6} {kernels:8.2f} {chosen:7} {auto:6.2f} {worst:6.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=("inference", "training"), required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--autocast", choices=("bfloat16", "float16"))
    parser.add_argument("--in-turn", type=int, default=1, metavar="N")
    arguments = parser.parse_args()
    torch.set_autocast_enabled("cpu", arguments.autocast is not None)
    torch.set_autocast_dtype("cpu", getattr(torch, arguments.autocast or "bfloat16"))
    rows: dict[tuple[str, int], list[Measured]] = defaultdict(list)
    torch.manual_seed(arguments.seed)
    end = time.monotonic() + arguments.seconds
    for count, block in enumerate(draw(random.Random(arguments.seed), arguments.in_turn)):
        if time.monotonic() > end:
            break
        print(f"\r{count} blocks, {max(0, end - time.monotonic()):.0f} s left ", end="", flush=True)
        measured = measure(block.layers, block.input, arguments.mode == "training")
        rows[block.kernel, int(math.log10(block.multiply_adds))].append(measured)
    print(
        f"\r{machine.in_words(machine.describe(torch.get_num_threads()))}, {arguments.mode}, {arguments.in_turn} in turn"
        f"{f', autocast to {arguments.autocast}' * bool(arguments.autocast)}; times as fast as PyTorch"
    )
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
