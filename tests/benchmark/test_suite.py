# SPDX-License-Identifier: MIT
from __future__ import annotations

import dataclasses

import pytest

from genimg_fast.benchmark import suite, sweeps
from genimg_fast.benchmark.functions import GaussianKLLoss
from genimg_fast.benchmark.runtimes import RUNTIMES
from genimg_fast.benchmark.turns import Turns
from genimg_fast.benchmark.worker import Block, Checked

ROW = suite.Row("row", GaussianKLLoss((4, 4)), ("eager", "openvino", "onnxruntime"), suite.Target(1.5, 3.0))


def reported(row, **milliseconds):
    """The report of a row in which each runtime took so long in each round."""
    blocks = {name: [Block(t / 1e3, 0.0) for t in times] for name, times in milliseconds.items()}
    return suite.report_row(row, {name: Checked(0.5, "output") for name in blocks}, Turns(blocks, {}), {})


def test_the_best_alternative_wins_and_is_what_we_are_compared_with():
    row = reported(ROW, ours=[1, 2, 1], eager=[5, 9, 5], openvino=[2, 5, 2])
    assert row["best"] == "openvino"
    assert row["ratio"]["median"] == 2
    assert row["runtimes"]["eager"]["times_as_long_as_ours"]["median"] == 5
    assert (row["gate_met"], row["goal_met"]) == (True, False)
    assert (
        "2.00 times as fast (2.00 to 2.25) as the best, OpenVINO; gate 1.5 met; goal 3 NOT met"
        in suite.row_in_words(row)
    )


def test_a_runtime_that_cannot_be_held_to_the_isa_is_shown_but_not_compared():
    row = reported(ROW._replace(isa="avx2"), ours=[1], eager=[5], onnxruntime=[2])
    assert row["best"] == "eager"
    assert not row["runtimes"]["onnxruntime"]["held_to_isa"]
    assert (
        "ONNX Runtime                              2 ms (cannot be held to avx2: not compared)"
        in suite.row_in_words(row)
    )


def test_without_ours_or_without_alternatives_there_is_no_ratio():
    assert reported(ROW, eager=[5])["best"] is None
    assert reported(ROW, ours=[5])["best"] is None
    assert "ratio" not in reported(ROW, ours=[5])


def test_smaller_is_better_for_bytes_and_errors():
    assert suite._verdict(suite.Target(0.75, 0.55), 0.6, higher=False) == {
        "gate": 0.75, "goal": 0.55, "gate_met": True, "goal_met": False,
    }  # fmt: skip


@pytest.mark.parametrize("rows", [suite.CPU_ROWS, suite.QUICK_ROWS])
def test_rows_are_well_formed(rows):
    assert len({row.name for row in rows}) == len(rows) > 5
    for row in rows:
        assert set(row.alternatives) <= set(RUNTIMES) - {"ours"}
        assert row.name.endswith("AVX2") == (row.isa == "avx2")
        assert row.target is None or row.target.goal > row.target.gate
        assert dataclasses.is_dataclass(row.workload)  # it travels to worker processes


def test_holding_all_to_an_isa_leaves_no_twins():
    native, avx2 = ROW, ROW._replace(name="row, AVX2", isa="avx2")
    other = ROW._replace(name="other", workload=GaussianKLLoss((5, 5)))
    assert suite.held_to((native, avx2, other), None) == (native, avx2, other)
    assert suite.held_to((native, avx2, other), "avx2") == (avx2, other._replace(isa="avx2"))


def point(size, ours, eager):
    return {"size": size, "picoseconds_per_flop": {"ours": ours, "eager": eager}}


def test_a_cliff_is_a_neighbour_one_and_a_half_times_as_costly():
    points = [point(1, 1.0, 1.0), point(2, 1.49, 1.0), point(4, 1.0, 1.0), point(8, 2.0, 3.0)]
    assert sweeps.cliffs(points) == [{"size": 8, "neighbour": 4, "times_worse": {"ours": 2.0, "eager": 3.0}}]
    assert sweeps.cliffs(points[::-1])[0]["size"] == 8
    assert "8 costs 2.00 times as much for a FLOP as 4 (eager: 3.00)" in suite.sweep_in_words(
        {"cliffs": sweeps.cliffs(points)}
    )


def test_sweeps_go_where_they_must():
    reach = {name: (min(points), max(points)) for name, points in sweeps.SWEEPS.items()}
    assert reach == {"batch": (1, 256), "image size": (16, 256), "channels": (16, 1024)}
