# SPDX-License-Identifier: MIT
"""`make sanitize`: the tests of the operators on CPU kernels built with AddressSanitizer and UndefinedBehaviorSanitizer.

They run in build/sanitize, on a copy of the package that holds the sanitized library beside the same Python files; the
installed library stays as it is.  torch is not instrumented, but its memory comes from the sanitizer's allocator, so
that each tensor has a poisoned border.  New memory is filled with NaN: a value that was never written shows in a result.
Before that, kernels that are wrong on purpose (controls.cpp) must each end with the report that they deserve.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "sanitize"
CXX = os.environ.get("CXX", "g++")
PYTEST = ["-m", "pytest", "-p", "no:cacheprovider", "-n", "auto", "-m", "not slow"]
TESTS = ["tests/ops", "tests/nn", "tests/test_vector_math.py", "tests/test_random_configurations.py"]

# control -> what the report says
CONTROLS = {
    "in_bounds": None,
    "read_past_the_end": r"ERROR: AddressSanitizer: .*\nREAD of size (16|32|64)",
    "write_past_the_end": r"ERROR: AddressSanitizer: .*\nWRITE of size (16|32|64)",
    "read_past_packed_weights": r"ERROR: AddressSanitizer: .*\nREAD of size (16|32|64)",
    "misaligned": r"runtime error: store to misaligned address",
    "overflowing_index": r"runtime error: signed integer overflow",
}
CONTROL_PROGRAM = """
import ctypes, sys, torch
x = torch.ones(1003)
ctypes.CDLL("genimg_fast/_controls.so")[sys.argv[1]](ctypes.c_void_p(x.data_ptr()), ctypes.c_int64(x.numel()))
"""


def build() -> None:
    """The package with the sanitized library, the controls and the tests, in FOLDER."""
    for name in ("genimg_fast", "tests"):
        ignored = shutil.ignore_patterns("*.so", "__pycache__", "cuda_on_cpu")
        shutil.rmtree(FOLDER / name, ignore_errors=True)  # a file that is gone from the sources would still be imported
        shutil.copytree(ROOT / name, FOLDER / name, ignore=ignored)
    environment = os.environ | {"GENIMG_FAST_SANITIZE": "1", "GENIMG_FAST_CUDA": "0"}
    command = ["setup.py", "-q", "build_ext", "--build-lib", FOLDER, "--build-temp", FOLDER / "objects"]
    subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, check=True)


def environment() -> dict[str, str]:
    """Of a Python with the sanitizers loaded."""
    # libstdc++ too: AddressSanitizer looks for __cxa_throw when it starts, and Python itself is not C++.
    libraries = [
        subprocess.run([CXX, f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so", "libstdc++.so")
    ]
    return os.environ | {
        "LD_PRELOAD": " ".join(libraries),
        # Leaks are Python's own.  New memory is 0xffffffff, a NaN.
        "ASAN_OPTIONS": f"detect_leaks=0:max_malloc_fill_size={1 << 30}:malloc_fill_byte=255",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": "",
    }


def check_control(name: str) -> str:
    """What is wrong with how a control ends; empty if nothing is."""
    command = [sys.executable, "-c", CONTROL_PROGRAM, name]
    run = subprocess.run(command, cwd=FOLDER, env=environment(), capture_output=True, text=True)
    report = CONTROLS[name]
    as_it_should = run.returncode == 0 if report is None else run.returncode != 0 and re.search(report, run.stderr)
    return "" if as_it_should else f"control {name} ended with exit code {run.returncode}\n{run.stderr[-3000:]}"


def main() -> None:
    build()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for wrong in pool.map(check_control, CONTROLS):
            if wrong:
                sys.exit(wrong)
    print(f"sanitizers: {len(CONTROLS)} controls end as they should", flush=True)
    sys.exit(subprocess.run([sys.executable, *PYTEST, *TESTS], cwd=FOLDER, env=environment()).returncode)


if __name__ == "__main__":
    main()
