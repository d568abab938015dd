# SPDX-License-Identifier: MIT
from __future__ import annotations

import os

import pytest

from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.memory import Memory

SANITIZE = os.environ.get("GENIMG_FAST_CUDA_ON_CPU_SANITIZE") == "1"  # set by test_sanitizers.py
# The sanitizers look at addresses, which do not depend on the order of threads.
SCHEDULES = ["random"] if SANITIZE else ["forward", "reverse", "random"]


@pytest.fixture(scope="session")
def kernels():
    """The kernels of csrc/cuda, compiled for the host."""
    return build.load(SANITIZE)


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
