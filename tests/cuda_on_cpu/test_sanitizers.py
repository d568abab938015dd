# SPDX-License-Identifier: MIT
"""The tests of this folder once more with AddressSanitizer and UndefinedBehaviorSanitizer, which see what values do not:
reads outside an array, misaligned accesses, indices outside a local array, shifts and overflows that C++ leaves undefined.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.cuda_on_cpu import build


def run_sanitized(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with the sanitizers loaded, from the root of the repository."""
    build.build(sanitize=True)
    # libstdc++ too: AddressSanitizer looks for __cxa_throw when it starts, and Python itself is not C++.
    libraries = [
        subprocess.run(
            [build.CXX, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "GENIMG_FAST_CUDA_ON_CPU_SANITIZE": "1",
    }
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=build.ROOT, env=environment, capture_output=True, text=True, timeout=1200)


def test_all_kernels_under_the_sanitizers():
    # test_shim.py holds kernels that are wrong on purpose.  --confcutdir: the tests' own conftest.py needs torch.
    folder = "tests/cuda_on_cpu"
    ignored = [f"--ignore={folder}/{name}" for name in ("test_shim.py", "test_sanitizers.py")]
    options = ["-p", "no:cacheprovider", "-x", "-s", "-m", "not slow"]
    run = run_sanitized("-m", "pytest", f"--confcutdir={folder}", *options, *ignored, folder)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-6000:]
    assert " passed" in run.stdout


@pytest.mark.parametrize(
    ("call", "report"),
    [
        ("copy_global(x, 0, out, 4)", "AddressSanitizer: use-after-poison.*WRITE of size 4"),
        ("copy_global(x, -1, out, 0)", "AddressSanitizer: use-after-poison.*READ of size 4"),
        (
            "copy_global(np.ones(400, np.float32), 400, out, 0)",
            "AddressSanitizer: heap-buffer-overflow.*READ of size 4",
        ),
        ("store_shared(64, 64)", "AddressSanitizer: use-after-poison.*WRITE of size 4"),
        ("load_pack(memory.input(np.zeros(4), np.float32, 1), out)", "misaligned address"),
    ],
)
def test_a_wrong_access_ends_the_process(call, report):
    program = f"""
import numpy as np
from tests.cuda_on_cpu import build
from tests.cuda_on_cpu.memory import Memory
kernels = build.load(sanitize=True)
memory = Memory(kernels)
x, out = memory.input(np.zeros(4), np.float32), memory.output(4, np.float32)
kernels.copy_global(x, 3, out, 3)
print("still alive")
kernels.{call}
"""
    run = run_sanitized("-c", program)
    assert run.stdout == "still alive\n", run.stderr
    assert run.returncode != 0
    assert re.search(report, run.stderr, re.DOTALL), run.stderr
