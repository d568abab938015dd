# SPDX-License-Identifier: MIT
from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.cuda_on_cpu import build
from tests.cuda_on_cpu import conftest as cuda_on_cpu
from tests.ptx_on_cpu.compile import compile


@pytest.fixture
def kernels():
    """The shim's module, which runs PTX as soon as a test loads some."""
    kernels = build.load()
    kernels.set_schedule("random", 1)
    yield kernels
    kernels.unload_ptx()
    kernels.set_schedule("forward", 0)


memory = cuda_on_cpu.memory  # for the kernels above


@pytest.fixture(scope="session")
def ptx() -> dict[str, Path]:
    """nvcc's PTX for sm_90a, by the name of the source."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not on PATH")
    return {path.name.removesuffix(".ptx"): path for path in compile("90a")}
