# SPDX-License-Identifier: MIT
"""The native libraries: those that lie in the package if they load here, else built from the sources."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BUILD_SECONDS = 300


class LibraryError(RuntimeError):
    """One line for the user."""


def ensure(root: Path = ROOT) -> dict[str, str]:
    """{library: which file it is, and whether it was built here}.

    Raises:
        LibraryError: they are not there, or do not load, and cannot be built.
    """
    found = _load(root)
    reason = _why_not_usable(found)
    if reason:
        _build(root, reason)
        found = _load(root)
        if again := _why_not_usable(found):
            raise LibraryError(f"the libraries were built here and do not load: {again}")
    return {name: _describe(Path(detail), built=bool(reason)) for name, (_, detail) in found.items()}


def _load(root: Path) -> dict[str, tuple[bool, str]]:
    """Whether each loads, and its file or why not.  In a process of its own: this one must load them only once they are final."""
    program = "import json; from genimg_fast import _extension as e; print(json.dumps({'_cpu': e.status('cpu'), '_cuda': e.status('cuda')}))"
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        return {"_cpu": (False, (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])}
    return json.loads(done.stdout.splitlines()[-1])


def _why_not_usable(found: dict[str, tuple[bool, str]]) -> str:
    return next((detail for loaded, detail in found.values() if not loaded), "")


def _build(root: Path, reason: str) -> None:
    print(f"building the libraries, since {reason}", flush=True)
    for path in (root / "genimg_fast").glob("_c*.so"):
        path.unlink()
    environment = os.environ | {"GENIMG_FAST_CUDA": "1"}
    if "TORCH_CUDA_ARCH_LIST" not in environment:
        environment["TORCH_CUDA_ARCH_LIST"] = _architecture()
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
