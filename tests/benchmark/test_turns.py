# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from genimg_fast.benchmark import turns
from genimg_fast.benchmark.turns import Quartiles, Turns, quartiles, take_turns
from genimg_fast.benchmark.worker import Block, RuntimeFailedError


class FakeWorker:
    """Notes its name in `log` for each block, and fails from its `lifetime`th block on."""

    def __init__(self, name, log, lifetime=100):
        self.name, self.log, self.lifetime = name, log, lifetime

    def ask(self, request, seconds):
        assert request == "run"
        self.log.append(self.name)
        self.lifetime -= 1
        if self.lifetime < 0:
            raise RuntimeFailedError("its process died (SIGKILL)")
        return Block(1.0, 0.0)


def test_the_order_turns_round_by_round():
    log = []
    result = take_turns({name: FakeWorker(name, log) for name in "abc"}, seconds=0, min_rounds=3)
    assert "".join(log) == "abccbaabc"
    assert [len(blocks) for blocks in result.blocks.values()] == [3, 3, 3]


def test_a_worker_that_dies_is_left_out_and_the_others_go_on():
    log = []
    workers = {"a": FakeWorker("a", log), "b": FakeWorker("b", log, lifetime=1), "c": FakeWorker("c", log)}
    result = take_turns(workers, seconds=0, min_rounds=4)
    assert "".join(log) == "abccbaacca"
    assert result.failed == {"b": "its process died (SIGKILL)"}
    assert {name: len(blocks) for name, blocks in result.blocks.items()} == {"a": 4, "c": 4}


def test_turns_end_when_all_are_dead():
    assert take_turns({"a": FakeWorker("a", [], lifetime=0)}, seconds=60).blocks == {}


def test_ratios_are_taken_round_by_round():
    blocks = {"fast": [Block(s, 0.0) for s in (1.0, 2.0, 4.0)], "slow": [Block(s, 0.0) for s in (2.0, 6.0, 8.0)]}
    assert Turns(blocks, {}).ratio("slow", over="fast") == pytest.approx((2.0, 2.0, 2.5))


def test_idle_time_leaves_out_the_wait_before_the_first_block():
    assert Turns({"a": [Block(1.0, 9.0), Block(1.0, 0.1), Block(1.0, 0.3)]}, {}).idle_cpu_seconds("a") == pytest.approx(
        0.2
    )
    assert Turns({"a": [Block(1.0, 9.0)]}, {}).idle_cpu_seconds("a") == 0


def test_quartiles():
    assert quartiles([3.0]) == Quartiles(3.0, 3.0, 3.0)
    assert quartiles([5.0, 1.0, 3.0, 2.0, 4.0]) == Quartiles(2.0, 3.0, 4.0)


def test_all_workers_prepare_at_once():
    events, begin = [], set()

    class Preparing:
        def __init__(self, name):
            self.name = name

        def send(self, request, workload):
            events.append(f"{request} {workload}")

        def receive(self, since):
            events.append(self.name)
            begin.add(since)
            if self.name == "b":
                raise RuntimeFailedError("no")
            return "checked"

    assert turns.prepare({"a": Preparing("a"), "b": Preparing("b")}, 7) == ({"a": "checked"}, {"b": "no"})
    assert events == ["prepare 7", "prepare 7", "a", "b"]
    assert len(begin) == 1  # and have the same time to answer
