# SPDX-License-Identifier: MIT
"""The native libraries: those that lie in the package if they load here, else built from the sources."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NAMES = {"cpu": ("_cpu",), "cuda": ("_cpu", "_cuda")}
_BUILD_SECONDS = 300


class LibraryError(RuntimeError):
    """One line for the user."""


def ensure(device: str, root: Path = ROOT) -> dict[str, str]:
    """{library: which file it is, and whether it was built here}.

    Raises:
        LibraryError: they are not there, or do not load, and cannot be built.
    """
    reason = _why_not_usable(device, root)
    if reason:
        _build(device, root, reason)
        if again := _why_not_usable(device, root):
            raise LibraryError(f"the libraries were built here and do not load: {again}")
    return {name: _describe(root / "genimg_fast" / f"{name}.so", built=bool(reason)) for name in NAMES[device]}


def _why_not_usable(device: str, root: Path) -> str:
    # in a process of its own: this one must load them only once they are final
    program = f"from genimg_fast import _extension as e; import genimg_fast; s = e.status({device!r}); print(s.loaded, s.detail)"
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    lines = (done.stdout or done.stderr or f"exit code {done.returncode}").strip().splitlines()
    return "" if lines[-1].startswith("True ") else lines[-1].removeprefix("False ")


def _build(device: str, root: Path, reason: str) -> None:
    print(f"building the libraries, since {reason}", flush=True)
    for name in NAMES[device]:
        (root / "genimg_fast" / f"{name}.so").unlink(missing_ok=True)
    environment = os.environ | {"GENIMG_FAST_CUDA": str(int(device == "cuda"))}
    if device == "cuda":
        environment.setdefault("TORCH_CUDA_ARCH_LIST", _architecture())
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=_BUILD_SECONDS)
    if done.returncode != 0:
        raise LibraryError(f"the libraries do not build: {' | '.join((done.stdout + done.stderr).splitlines()[-6:])}")


def _architecture() -> str:
    """That of the first GPU, as TORCH_CUDA_ARCH_LIST wants it."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}{'a' * (major == 9)}"


def _describe(path: Path, *, built: bool) -> str:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    return f"{path.name}, {'built here' if built else 'prebuilt'}, {path.stat().st_size} bytes, sha256 {digest}, {made}"
