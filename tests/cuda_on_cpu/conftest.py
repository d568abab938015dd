# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest

from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.memory import Memory
from tests.cuda_on_cpu.mode import PTX, SANITIZE, SCHEDULES


@pytest.fixture(scope="session")
def kernels():
    """The kernels of csrc/cuda, compiled for the host, or the PTX that nvcc makes of them."""
    kernels = build.load(SANITIZE)
    if PTX:
        from tests.ptx_on_cpu.compile import compile

        for path in compile(PTX):
            kernels.load_ptx(str(path))
    return kernels


@pytest.fixture(params=SCHEDULES)
def schedule(request, kernels):
    """Runs a test under each order of threads and blocks in turn."""
    kernels.set_schedule(request.param, 1)
    yield request.param
    kernels.set_schedule("forward", 0)


@pytest.fixture
def memory(kernels):
    """Arrays for the kernels; fails the test if something was written beside one."""
    memory = Memory(kernels)
    yield memory
    memory.check_guards()
