# SPDX-License-Identifier: MIT
"""The native libraries: those that lie in the package if they load here and are of these sources, else built from them."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks import gpu_ledger

ROOT = Path(__file__).resolve().parents[2]
_LOAD_SECONDS, _BUILD_SECONDS = 120, 300


class LibraryError(RuntimeError):
    """One line for the user."""


def ensure(root: Path = ROOT) -> dict[str, str]:
    """{library: which file it is, and whether it was built here}.

    Raises:
        LibraryError: they are not there, or do not load, and cannot be built.
    """
    found = _load(root)
    reason = _why_not_usable(found, root)
    if reason:
        _build(root, reason)
        found = _load(root)
        if again := _why_not_usable(found, root):
            raise LibraryError(f"the libraries were built here and are of no use: {again}")
    return {name: _describe(Path(detail), built=bool(reason)) for name, (_, detail) in found.items()}


def _load(root: Path) -> dict[str, tuple[bool, str]]:
    """Whether each loads, and its file or why not.  In a process of its own: this one must load them only once they are final."""
    program = "import json; from genimg_fast import _extension as e; print(json.dumps({'_cpu': e.status('cpu'), '_cuda': e.status('cuda')}))"
    command = [sys.executable, "-c", program]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=_LOAD_SECONDS)
    except subprocess.TimeoutExpired:
        raise LibraryError(f"the libraries do not load within {_LOAD_SECONDS} s") from None
    if done.returncode != 0:
        return {"_cpu": (False, (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1])}
    return json.loads(done.stdout.splitlines()[-1])


def _why_not_usable(found: dict[str, tuple[bool, str]], root: Path) -> str:
    for loaded, detail in found.values():
        if not loaded:
            return detail
    build_id = bytes.fromhex(gpu_ledger.source_hash(root))  # see setup.py
    return "" if build_id in Path(detail).read_bytes() else f"{detail} was built from other sources"


def _build(root: Path, reason: str) -> None:
    print(f"building the libraries, since {reason}", flush=True)
    for path in (root / "genimg_fast").glob("_c*.so"):
        path.unlink()
    # For this GPU alone, whatever the environment lists: without 9.0a Hopper's own instructions would be left out.
    environment = os.environ | {"GENIMG_FAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": _architecture()}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    code, output = run_to_end(command, _BUILD_SECONDS, cwd=root, env=environment)
    if code is None:
        raise LibraryError(f"the libraries do not build within {_BUILD_SECONDS} s")
    if code != 0:
        raise LibraryError(f"the libraries do not build: {' | '.join(output.splitlines()[-6:])}")


def run_to_end(command: Sequence[str], seconds: float, **options: Any) -> tuple[int | None, str]:
    """Exit code, None if it was out of time, and output.  What the command started, a compiler say, ends with it."""
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True, **options
        )
        try:
            code = process.wait(max(seconds, 0))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
        output.seek(0)
        return code, output.read()


def _architecture() -> str:
    """That of the first GPU, as TORCH_CUDA_ARCH_LIST wants it."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    return f"{major}.{minor}{'a' * (major == 9)}"


def _describe(path: Path, *, built: bool) -> str:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))
    return f"{path.name}, {'built here' if built else 'prebuilt'}, {path.stat().st_size} bytes, sha256 {digest}, {made}"
