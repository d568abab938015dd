# SPDX-License-Identifier: MIT
"""Lets workers take turns, and compares them round by round.

What slows the machine down for a while slows all of them, and the ratio within a round stays; the spread over the rounds says
how far to trust it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from genimg_fast.benchmark.worker import Block, Checked, RuntimeFailedError, Worker

BLOCK_SECONDS = 0.15
MIN_ROUNDS = 5


class Quartiles(NamedTuple):
    low: float
    median: float
    high: float


def quartiles(values: Sequence[float]) -> Quartiles:
    if len(values) < 2:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


@dataclass
class Turns:
    blocks: dict[str, list[Block]]
    """Per worker that ran to the end: one block a round."""
    failed: dict[str, str]
    """Per worker that did not: the reason."""

    def seconds(self, name: str) -> list[float]:
        return [block.seconds for block in self.blocks[name]]

    def ratio(self, name: str, over: str) -> Quartiles:
        """How many times as long as `over` `name` takes, round by round."""
        pairs = zip(self.seconds(name), self.seconds(over), strict=True)
        return quartiles([slow / fast for slow, fast in pairs])

    def idle_cpu_seconds(self, name: str) -> float:
        """CPU time that the worker used between two of its blocks, while the others ran: near 0 if it slept."""
        return statistics.median([block.idle_cpu_seconds for block in self.blocks[name][1:]] or [0.0])


def prepare(workers: Mapping[str, Worker], workload: object) -> tuple[dict[str, Checked], dict[str, str]]:
    """Builds and checks the workload in all workers at once; (what was checked, why the others cannot run it)."""
    begin = time.monotonic()
    for worker in workers.values():
        worker.send("prepare", workload)
    checked, failed = {}, {}
    for name, worker in workers.items():
        try:
            checked[name] = worker.receive(since=begin)
        except RuntimeFailedError as error:
            failed[name] = str(error)
    return checked, failed


def take_turns(
    workers: Mapping[str, Worker],
    *,
    seconds: float,
    block_seconds: float = BLOCK_SECONDS,
    min_rounds: int = MIN_ROUNDS,
) -> Turns:
    """Runs the workers, which have prepared a workload, in alternating blocks for about `seconds` altogether.

    A worker that fails on the way is left out from then on.
    """
    turns = Turns({name: [] for name in workers}, {})
    order = list(workers)
    rounds, deadline = 0, time.perf_counter() + seconds
    while order and (rounds < min_rounds or time.perf_counter() < deadline):
        for name in tuple(order):
            try:
                turns.blocks[name].append(workers[name].ask("run", block_seconds))
            except RuntimeFailedError as error:
                turns.failed[name] = str(error)
                del turns.blocks[name]
                order.remove(name)
        order.reverse()  # so that none always runs in another's wake
        rounds += 1
    return turns
