# SPDX-License-Identifier: MIT
"""Compiles the CUDA kernels to PTX with nvcc; reuses what was made of the same files by the same command."""

from __future__ import annotations

import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cuda_on_cpu import build, cuda_compile

ARCHITECTURES = ("80", "90a")
"""The two that kernels have code of their own for."""


def sources() -> list[Path]:
    """The library's kernels, and those that test the shim and the interpreter."""
    return [*cuda_compile.sources(), build.HERE / "controls.cu"]


def compile(architecture: str) -> list[Path]:
    """The PTX of every kernel.

    Raises:
        RuntimeError: if something does not compile; the message is nvcc's.
    """
    folder = build.CACHE.parent / "ptx_on_cpu" / architecture
    folder.mkdir(parents=True, exist_ok=True)
    with build.locked(), ThreadPoolExecutor(build.JOBS) as pool:
        return list(pool.map(lambda source: _compile_file(source, architecture, folder), sources()))


def _compile_file(source: Path, architecture: str, folder: Path) -> Path:
    ptx, dependencies = folder / f"{source.name}.ptx", folder / f"{source.name}.d"
    wgmma = ["-DGENIMG_FAST_HAS_SM90A"] * (architecture == "90a")  # as setup.py does
    command = ["nvcc", "-ptx", f"-arch=sm_{architecture}", *cuda_compile.FLAGS, *wgmma, f"-I{build.HERE}"]
    command += ["-MD", "-MF", str(dependencies), "-o", str(ptx), str(source)]

    def files() -> list[Path]:  # the toolkit's own do not change
        names = shlex.split(dependencies.read_text().replace("\\\n", " ").split(":", 1)[1])
        return [path for name in names if (path := Path(name)).is_relative_to(build.ROOT)] + [Path(nvcc_version())]

    build.make(ptx, command, files)
    return ptx


def nvcc_version() -> str:
    """A file that says which nvcc there is."""
    printed = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    path = build.CACHE.parent / "ptx_on_cpu" / "nvcc"
    if not path.exists() or path.read_text() != printed:
        path.write_text(printed)
    return str(path)
