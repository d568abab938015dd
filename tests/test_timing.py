# SPDX-License-Identifier: MIT
from __future__ import annotations

import time

import pytest

from genimg_fast import _timing


def test_blocks_alternate_and_the_order_turns():
    calls = []
    functions = {name: lambda name=name: calls.append(name) or time.sleep(0.002) for name in "ab"}
    timing = _timing.time_alternately(functions, seconds=0, block_seconds=0.001, min_rounds=3)
    assert "".join(calls[4:]) == "abbaab"  # after two warm-up calls of each; a block is one call
    assert [len(times) for times in timing.seconds.values()] == [3, 3]


def test_speedup_is_the_ratio_of_each_round():
    timing = _timing.Paired({"fast": [1.0, 2.0, 4.0], "slow": [2.0, 6.0, 8.0]})
    assert timing.speedup("fast", over="slow") == pytest.approx((2.0, 2.0, 2.5))
    assert timing.median("slow") == 6.0


def test_a_block_repeats_a_short_function():
    calls = []
    _timing.time_alternately({"short": lambda: calls.append(0)}, seconds=0, block_seconds=0.01, min_rounds=1)
    assert len(calls) > 100


def test_times_are_those_of_one_call():
    timing = _timing.time_alternately({"sleep": lambda: time.sleep(0.001)}, seconds=0, block_seconds=0.01, min_rounds=3)
    assert 0.001 <= timing.median("sleep") < 0.005
