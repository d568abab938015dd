# SPDX-License-Identifier: MIT
"""How the cost of one block grows with batch, image size and channels, and where it jumps."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from genimg_fast.benchmark.models import BlockInference
from genimg_fast.benchmark.turns import prepare, take_turns
from genimg_fast.benchmark.worker import Worker

CLIFF = 1.5
"""How much worse per FLOP than its neighbour a shape may be."""

SWEEPS: dict[str, dict[int, BlockInference]] = {
    "batch": {n: BlockInference(n, 256, 128, 8) for n in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)},
    "image size": {s: BlockInference(4, 128, 64, s // 2) for s in (16, 24, 32, 48, 64, 96, 128, 192, 256)},
    "channels": {
        c: BlockInference(16, c, c // 2, 8) for c in (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
    },
}


def measure(workers: dict[str, Worker], size: int, block: BlockInference) -> dict[str, Any]:
    """{"size", "flops", "picoseconds_per_flop": {runtime: value}, "failed": {runtime: reason}}; the best of three rounds."""
    checked, failed = prepare(workers, block)
    turns = take_turns({name: workers[name] for name in checked}, seconds=0, block_seconds=0.05, min_rounds=3)
    cost = {name: min(turns.seconds(name)) * 1e12 / block.flops for name in turns.blocks}
    return {"size": size, "flops": block.flops, "picoseconds_per_flop": cost, "failed": {**failed, **turns.failed}}


def cliffs(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sizes at which our cost for a FLOP is more than `CLIFF` times that of a neighbour, and eager's in the same step."""
    found = []
    for a, b in pairwise(points):
        for size, neighbour in ((a, b), (b, a)):
            worse = {
                name: size["picoseconds_per_flop"][name] / cost
                for name, cost in neighbour["picoseconds_per_flop"].items()
                if name in size["picoseconds_per_flop"]
            }
            if worse.get("ours", 0) > CLIFF:
                found.append({"size": size["size"], "neighbour": neighbour["size"], "times_worse": worse})
    return found
