# SPDX-License-Identifier: MIT
"""Times functions against each other so that a busy machine changes the ratio little.

The functions take turns in short blocks.  What slows the machine down for a while then slows all of them, and the ratio
within a round stays; the spread over the rounds says how far to trust it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Quartiles(NamedTuple):
    low: float
    median: float
    high: float


def quartiles(values: list[float]) -> Quartiles:
    if len(values) < 2:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


class Paired(NamedTuple):
    seconds: dict[str, list[float]]
    """Per function: seconds for one call, one entry a round."""

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def speedup(self, name: str, over: str) -> Quartiles:
        """How many times as fast `name` is as `over`, round by round."""
        return quartiles([slow / fast for fast, slow in zip(self.seconds[name], self.seconds[over], strict=True)])


def time_alternately(
    functions: Mapping[str, Callable[[], object]],
    *,
    seconds: float,
    device: torch.device | str = "cpu",
    block_seconds: float = 0.03,
    min_rounds: int = 5,
) -> Paired:
    """Runs the functions in alternating blocks for about `seconds`, at least `min_rounds` rounds of one block each.

    Args:
        functions: name -> function of no arguments.
        seconds: for all functions together, warm-up not counted.
        device: on CUDA each block ends with a synchronisation.
        block_seconds: a block repeats its function for about that long, and at least once.
    """
    cuda = torch.device(device).type == "cuda"

    def block(function: Callable[[], object], calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            function()
        if cuda:
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) / calls

    calls = {}
    for name, function in functions.items():
        block(function, 1)  # the first call allocates, packs weights and compiles
        calls[name] = max(1, int(block_seconds / max(block(function, 1), 1e-7)))
    results: dict[str, list[float]] = {name: [] for name in functions}
    order = list(functions)
    deadline = time.perf_counter() + seconds
    while len(results[order[0]]) < min_rounds or time.perf_counter() < deadline:
        for name in order:
            results[name].append(block(functions[name], calls[name]))
        order.reverse()  # so that neither always runs in the other's wake
    return Paired(results)
