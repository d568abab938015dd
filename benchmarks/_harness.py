# SPDX-License-Identifier: MIT
"""Runs the workloads of `genimg_fast.cli._workloads` under pytest-benchmark."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from genimg_fast import _extension
from genimg_fast.cli import _machine, _workloads


def workloads(group: str) -> Callable:
    """Parametrises a benchmark over the workloads of `group`, their passes and the backends."""
    cases = [
        pytest.param(workload, passes, backend, id=f"{workload.name}-{passes}-{backend}")
        for workload in _workloads.WORKLOADS
        if workload.group == group
        for passes in workload.passes
        for backend in _workloads.TIMED_BACKENDS
    ]
    return pytest.mark.parametrize(("workload", "passes", "backend"), cases)


def run(benchmark, workload: _workloads.Workload, passes: str, backend: str) -> None:
    """Times one workload on the GPU if there is one; images/s or GB/s go into extra_info."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if backend == "native":
        library = _extension.status(device.type)
        assert library.loaded, library.detail
    prepared = _workloads.prepare(workload, passes, backend, device)
    prepared.call()  # allocates, packs weights, compiles
    synchronize = torch.cuda.synchronize if device.type == "cuda" else None

    def call() -> None:
        prepared.call()
        if synchronize:
            synchronize()

    benchmark.group = f"{workload.name}, {passes}"
    benchmark.extra_info.update(backend=backend, machine=_machine.describe())
    benchmark(call)
    if benchmark.stats:  # None under --benchmark-disable
        benchmark.extra_info[workload.unit] = prepared.amount(workload) / benchmark.stats.stats.median
