# SPDX-License-Identifier: MIT
"""Every op's kernels under NVIDIA's compute-sanitizer, and one wrong access that it must find.

As a program, `python -m tests.gpu_check.sanitizer ops | wgmma | control`, it is what runs under the sanitizer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from genimg_fast.backends import cuda
from tests.gpu_check import cases, subject

_FOUND = 86  # the exit code that says that the sanitizer found something
_RUNS = {
    "control": ("memcheck", "control"),
    "memcheck": ("memcheck", "ops"),
    "memcheck of wgmma": ("memcheck", "wgmma"),
    "racecheck": ("racecheck", "ops"),
}


def check(seconds: float) -> dict[str, Any]:
    """{"ok", run: what happened}; "ok" is None where the tool is not installed."""
    tool = _find()
    if tool is None:
        return {"ok": None, "skipped": "compute-sanitizer is not installed (it comes with the CUDA toolkit)"}
    with ThreadPoolExecutor() as pool:
        outcomes = dict(zip(_RUNS, pool.map(lambda name: _run(tool, *_RUNS[name], seconds), _RUNS), strict=True))
    return judge(outcomes)


def judge(outcomes: dict[str, tuple[int | None, str]]) -> dict[str, Any]:
    """From the exit code (None: out of time) and the output of each of `_RUNS`."""
    told = {}
    for name, (code, output) in outcomes.items():
        if code is None:
            told[name] = "out of time"
        elif name == "control":
            found = code == _FOUND and "Invalid __global__ read" in output
            told[name] = "ok" if found else f"the wrong access was NOT found (exit code {code}): {_tail(output)}"
        else:
            told[name] = "ok" if code == 0 and "ops ran" in output else f"exit code {code}: {_tail(output)}"
    return {"ok": all(outcome == "ok" for outcome in told.values()), **told}


def _tail(output: str) -> str:
    lines = [line for line in output.splitlines() if line.strip()]
    return " | ".join(lines[:8] + lines[-4:] if len(lines) > 12 else lines)[:1500]


def _find() -> str | None:
    beside_nvcc = Path("/usr/local/cuda/bin/compute-sanitizer")
    return shutil.which("compute-sanitizer") or (str(beside_nvcc) if beside_nvcc.exists() else None)


def _run(tool: str, kind: str, what: str, seconds: float) -> tuple[int | None, str]:
    # kns: kernels with this in their name, so that PyTorch's are not slowed down
    options = ["--tool", kind, "--kernel-name", "kns=genimg_fast", "--error-exitcode", str(_FOUND)]
    command = [tool, *options, sys.executable, "-m", "tests.gpu_check.sanitizer", what]
    # each tensor in an allocation of its own: inside torch's large ones no access would be out of bounds
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout + done.stderr


def ops(names: Sequence[str] = cases.OPS) -> None:
    """Forward and backward of a few cases of every op, in every dtype, each case once."""
    for op in names:
        for mode, case in subject.representatives(op, quick=True):
            with mode.in_force(), subject.use_backend("native"):
                case.run(case.tensors(0, "cuda", mode.dtype))
    torch.cuda.synchronize()
    print("ops ran")


def wgmma() -> None:
    """The convolutions once more, where the GPU has these instructions."""
    cuda.allow_wgmma = True
    ops(tuple(cases.LAYERS))


def control() -> None:
    """gaussian_kl_loss reads a tensor whose memory was halved behind its back."""
    mu, logvar = (torch.randn(1 << 12, device="cuda") for _ in range(2))
    mu.untyped_storage().resize_(mu.nbytes // 2)
    torch.ops.genimg_fast.gaussian_kl_loss(mu, logvar, 2, False)
    torch.cuda.synchronize()


if __name__ == "__main__":
    {"ops": ops, "wgmma": wgmma, "control": control}[sys.argv[1]]()
