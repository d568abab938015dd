# SPDX-License-Identifier: MIT
"""Tests that need a GPU, in processes that see the simulated one."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from genimg_fast import _extension
from tests import simulated_gpu
from tests.cuda_on_cpu.build import ROOT

pytestmark = [
    pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
    pytest.mark.skipif(not _extension.status("cpu").loaded, reason="needs the native libraries"),
]

SUITES = {
    "itself": ["tests/simulated_gpu/test_device.py", "tests/gpu_check/test_subject.py"],
    "the contract": ["tests/contract/test_contract.py", "tests/ops/test_awkward_arguments.py", "-k", "cuda"],
    # no kernel for a GPU takes float64
    "training": [*(f"tests/training/test_{of}.py" for of in ("train", "kill", "parity")), "-k", "not float64"],
    "the rest": ["tests/test_sampler.py", "tests/cli/test_doctor.py", "tests/models/test_pretrained.py"],
}


@pytest.mark.parametrize("suite", SUITES)
def test_suite(suite):
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-m",
        "not slow",
        *SUITES[suite],
    ]
    done = subprocess.run(command, cwd=ROOT, env=simulated_gpu.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout.splitlines()[-1]
