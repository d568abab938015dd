# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch

from genimg_fast import _extension


@pytest.fixture(params=["portable", "avx2", "avx512"])
def isa(request):
    """Runs a test on each instruction set of this CPU in turn."""
    if request.param not in _extension.available_cpu_isas():
        pytest.skip(f"this CPU has no {request.param}")
    before = _extension.cpu_isa()
    _extension.set_cpu_isa(request.param)
    yield request.param
    _extension.set_cpu_isa(before)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def pytest_terminal_summary(terminalreporter):
    """How many of PyTorch's own samples ran."""
    counts = {"OpInfo samples": 0, "ModuleInfo samples": 0}
    for report in terminalreporter.getreports("passed"):
        for name, count in report.user_properties:
            if name in counts:
                counts[name] += count
    if any(counts.values()):
        terminalreporter.write_line(
            f"outside samples: {counts['OpInfo samples']} OpInfo, {counts['ModuleInfo samples']} ModuleInfo"
        )
