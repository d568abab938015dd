# SPDX-License-Identifier: MIT
"""The tests of tests/cuda_on_cpu once more, on the PTX that nvcc makes of the same kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.cuda_on_cpu import build
from tests.ptx_on_cpu.compile import compile

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")

# test_shim.py holds kernels that are wrong on purpose, whose errors have other words here: test_controls.py.
IGNORED = ["test_shim.py", "test_sanitizers.py"]
# The kernels for sm_90a have no body for others.
IGNORED_OF = {"90a": [], "80": ["test_ptx_sm90.py", "test_convolution_wgmma.py"]}


def run(architecture: str, *options: str) -> subprocess.CompletedProcess[str]:
    folder = "tests/cuda_on_cpu"
    ignored = [f"--ignore={folder}/{name}" for name in [*IGNORED, *IGNORED_OF[architecture]]]
    # --confcutdir: the tests' own conftest.py needs torch.
    command = [sys.executable, "-m", "pytest", f"--confcutdir={folder}", "-p", "no:cacheprovider", *options]
    return subprocess.run(
        [*command, *ignored, folder],
        cwd=build.ROOT,
        env=os.environ | {"GENIMG_FAST_PTX_ON_CPU": architecture},
        capture_output=True,
        text=True,
        timeout=1200,
    )


@needs_nvcc
@pytest.mark.parametrize("architecture", IGNORED_OF)
def test_all_kernels(architecture):
    done = run(architecture, "-m", "not slow", "-k", "not a_phase_for_each_of_many_outputs")  # 66,049 blocks
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    assert " passed" in done.stdout


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("architecture", IGNORED_OF)
def test_all_kernels_in_every_order_of_threads(architecture, monkeypatch):
    monkeypatch.setenv("GENIMG_FAST_PTX_ON_CPU_SCHEDULES", "all")
    done = run(architecture)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]


@needs_nvcc
@pytest.mark.parametrize("architecture", IGNORED_OF)
def test_every_instruction_of_every_kernel_is_known(architecture):
    """Of those too that no test launches."""
    kernels = build.load()
    try:
        for path in compile(architecture):
            kernels.load_ptx(str(path))
        assert kernels.decode_ptx() > 200
    finally:
        kernels.unload_ptx()
