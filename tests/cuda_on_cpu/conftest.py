# SPDX-License-Identifier: MIT
from __future__ import annotations

import os

import pytest

from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.memory import Memory

SANITIZE = os.environ.get("GENIMG_FAST_CUDA_ON_CPU_SANITIZE") == "1"  # set by test_sanitizers.py
# The sanitizers look at addresses, which do not depend on the order of threads.
PTX = os.environ.get("GENIMG_FAST_PTX_ON_CPU")  # the same, by tests/ptx_on_cpu: an architecture
SCHEDULES = ["random"] if SANITIZE or PTX else ["forward", "reverse", "random"]


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
