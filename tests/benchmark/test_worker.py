# SPDX-License-Identifier: MIT
from __future__ import annotations

import math
import os
import time

import pytest
import torch

from genimg_fast.benchmark import suite
from genimg_fast.benchmark.functions import GaussianKLLoss, Reparameterize
from genimg_fast.benchmark.runtimes import Runtime
from genimg_fast.benchmark.worker import (
    RuntimeFailedError,
    Worker,
    build,
    check_standard_normal,
    relative_error,
)
from tests.benchmark import _workloads

KL = GaussianKLLoss((8, 16))


@pytest.fixture(scope="module")
def workers():
    """The processes of this module: starting one takes seconds."""
    with suite.Workers(threads=1) as workers:
        yield workers


@pytest.fixture(scope="module")
def eager(workers):
    return workers.get("eager", None)


def test_a_worker_checks_times_and_sleeps(eager):
    checked = eager.ask("prepare", KL)
    assert 0 < checked.error <= 1
    assert checked.output in ("output", "gradient of input 0", "gradient of input 1")
    assert 0 < eager.ask("run", 0.01).seconds < 0.01  # of one call, not of the block
    time.sleep(0.3)
    assert eager.ask("run", 0.01).idle_cpu_seconds < 0.03


def test_a_worker_is_a_process_of_its_own_with_its_own_settings(workers, eager):
    pid, threads, environment = eager.ask("call", _workloads.surroundings)
    assert pid != os.getpid()
    assert threads == 1
    assert environment == {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": None}
    assert workers.get("eager", None) is eager  # and is kept


def test_what_fails_is_one_line_and_the_worker_lives_on(eager):
    with pytest.raises(RuntimeFailedError, match=r"^RuntimeError: no such kernel$"):
        eager.ask("prepare", _workloads.FailsIn((8, 16), "eager"))
    with pytest.raises(
        RuntimeFailedError, match=r"^wrong output: output differs from float64 by 1.0e-03; allowed is 1e-04$"
    ):
        eager.ask("prepare", _workloads.WrongOutput((8, 16)))
    assert eager.ask("prepare", KL).error <= 1


def test_a_worker_that_dies_is_told_and_replaced(workers):
    row = suite.Row("dies", _workloads.Dies((8, 16)), ())
    mortal = workers.get("ours", None)
    result = suite.measure_row(row, workers, seconds=0)
    assert result["failed"] == {"ours": "its process died (SIGKILL)"}
    assert result["runtimes"] == {}
    assert result["best"] is None
    with pytest.raises(RuntimeFailedError, match="its process died"):
        mortal.ask("run", 0.01)
    assert workers.get("ours", None) is not mortal


def test_the_avx2_worker_is_held_to_it_and_ends_with_its_pipe():
    with Worker("eager", threads=1, isa="avx2") as worker:
        assert worker.ask("call", _workloads.surroundings)[2]["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert worker._process.exitcode == 0  # it went by itself: nobody had to kill it
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ


def test_a_worker_that_does_not_answer_is_given_up(monkeypatch):
    monkeypatch.setattr("genimg_fast.benchmark.worker.ANSWER_SECONDS", 0.01)
    worker = Worker("eager", threads=1)
    with worker, pytest.raises(RuntimeFailedError, match=r"no answer within 0.01 s"):
        worker.ask("prepare", KL)


def test_a_worker_is_waited_for_no_longer_than_agreed():
    with Worker("eager", threads=1) as worker:
        worker.send("prepare", KL)
        with pytest.raises(RuntimeFailedError, match=r"no answer within 600 s"):
            worker.receive(since=time.monotonic() - 600)
    worker = Worker("eager", threads=1, deadline=time.monotonic())
    with worker, pytest.raises(RuntimeFailedError, match=r"no answer before time was up"):
        worker.ask("prepare", KL)


def test_cudnn_tries_its_algorithms_but_not_in_float64(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    tried = {}

    class Noting(GaussianKLLoss):
        def prepare(self, runtime, dtype=torch.float32, noise=None):
            tried[dtype] = torch.backends.cudnn.benchmark
            return super().prepare(runtime, dtype, noise)

    build(Noting((8, 16)), Runtime())
    assert tried == {torch.float32: True, torch.float64: False}
    assert torch.backends.cudnn.benchmark


def test_wrong_outputs_and_noise_are_refused():
    runtime = Runtime()
    with pytest.raises(RuntimeFailedError, match="wrong output: output differs"):
        build(_workloads.WrongOutput((8, 16)), runtime)
    with pytest.raises(RuntimeFailedError, match=r"wrong noise: mean .* and variance [34]\."):
        build(_workloads.WrongNoise((64, 64)), runtime)
    assert build(Reparameterize((64, 64)), runtime)[1].error < 1


def test_relative_error():
    a = torch.tensor([3.0, 4.0])
    assert relative_error(a * 1.5, a) == 0.5
    assert relative_error(a[None], a) == math.inf
    assert math.isnan(relative_error(a * math.nan, a))


def test_noise_must_be_standard_normal():
    noise = torch.randn(10000, dtype=torch.float64)
    check_standard_normal(noise)
    for wrong in (noise + 0.1, noise * 1.1, noise * 0, noise * math.nan):
        with pytest.raises(RuntimeFailedError, match="wrong noise"):
            check_standard_normal(wrong)
