# SPDX-License-Identifier: MIT
"""Every op's kernels under NVIDIA's compute-sanitizer, and one wrong access that it must find.

As a program, `python -m tests.gpu_check.sanitizer ops | wgmma | control`, it is what runs under the sanitizer.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from genimg_fast.backends import cuda
from tests.gpu_check import cases, libraries, subject

_FOUND = 86  # the exit code that says that the sanitizer found something
_RUNS = {
    "control": ("memcheck", "control"),
    "memcheck": ("memcheck", "ops"),
    "racecheck": ("racecheck", "ops"),
    "memcheck of wgmma": ("memcheck", "wgmma"),
}
OPS, WGMMA = ("control", "memcheck", "racecheck"), ("memcheck of wgmma",)
_LATE = "out of time"


def check(names: Sequence[str], seconds: float, before: dict[str, Any]) -> dict[str, Any]:
    """`before` and those of `_RUNS` that it lacks or was late with: {"ok", run: what happened}.

    "ok" is None where the tool is not installed, or nothing was found and a run was out of time.
    """
    tool = _find()
    if tool is None:
        return {"ok": None, "skipped": "compute-sanitizer is not installed (it comes with the CUDA toolkit)"}
    names = [name for name in names if before.get(name, _LATE) == _LATE]
    with ThreadPoolExecutor() as pool:
        outcomes = dict(zip(names, pool.map(lambda name: _run(tool, *_RUNS[name], seconds), names), strict=True))
    return judge(outcomes, before)


def judge(outcomes: dict[str, tuple[int | None, str]], before: dict[str, Any]) -> dict[str, Any]:
    """From the exit code (None: out of time) and the output of some of `_RUNS`, and what was judged before."""
    told = {name: outcome for name, outcome in before.items() if name in _RUNS}
    for name, (code, output) in outcomes.items():
        if code is None and not any(sign in output for sign in ("Invalid __", "Race reported")):
            told[name] = _LATE
        elif name == "control":
            found = code in (_FOUND, None) and "Invalid __global__ read" in output
            told[name] = "ok" if found else f"the wrong access was NOT found (exit code {code}): {_tail(output)}"
        else:
            told[name] = "ok" if code == 0 and "ops ran" in output else f"exit code {code}: {_tail(output)}"
    if any(outcome not in ("ok", _LATE) for outcome in told.values()):
        return {"ok": False, **told}
    return {"ok": None if _LATE in told.values() else True, **told}


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
    return libraries.run_to_end(command, seconds, env=environment)


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
