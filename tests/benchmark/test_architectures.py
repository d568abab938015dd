# SPDX-License-Identifier: MIT
from __future__ import annotations

import pickle

import pytest
import torch

from benchmarks.architectures import ARCHITECTURES, ROWS, Pass
from genimg_fast.benchmark.runtimes import Ours, Runtime


def test_every_architecture_is_timed_in_both_modes():
    measured = {(row.workload.architecture, row.workload.training) for row in ROWS}
    assert measured == {(name, training) for name in ARCHITECTURES for training in (False, True)}
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert pickle.loads(pickle.dumps(ROWS)) == ROWS


@pytest.mark.parametrize("training", [False, True])
def test_a_pass_gives_what_it_gives_in_float64(training):
    workload = Pass("SNGAN generator, 8x8", 2, training)
    prepared, exact = workload.prepare(Ours()), workload.prepare(Runtime(), torch.float64).call()
    outputs = prepared.call()
    assert len(outputs) == len(exact) == len(prepared.tolerances)
    for (name, tolerance), actual, expected in zip(prepared.tolerances.items(), outputs, exact, strict=True):
        assert (actual.double() - expected).norm() <= tolerance * expected.norm(), name
