# SPDX-License-Identifier: MIT
"""Compiles csrc/cuda as host C++, with the bindings of this folder, into one Python module and loads it.

What was compiled before is reused as long as the contents of all files it was made of, and the command, are the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.machinery
import importlib.util
import os
import shlex
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
CACHE = ROOT / "build" / "cuda_on_cpu"
MODULE = "genimg_fast_cuda_on_cpu"
JOBS = 2

CXX = os.environ.get("CXX", "g++")
# _FORTIFY_SOURCE refuses to longjmp between stacks; kernels may have `#pragma unroll`.
FLAGS = [
    *("-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unknown-pragmas"),
    *("-U_FORTIFY_SOURCE", "-DGENIMG_FAST_CUDA_ON_CPU"),
    *(f"-I{folder}" for folder in (ROOT / "csrc", HERE, ROOT / "tests")),
]
# Of UndefinedBehaviorSanitizer what kernels get wrong; the rest doubles the compilation time.
SANITIZERS = "address,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero"
SANITIZER_FLAGS = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all"]
# The one file with pybind11, which takes long to compile: neither optimised nor instrumented.
PYTHON_FLAGS = ["-std=c++17", "-O0", "-fPIC", "-fvisibility=hidden", f"-I{ROOT / 'csrc'}"]
PYTHON_FLAGS += ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_path("include")]


def sources() -> list[Path]:
    interpreter = (ROOT / "tests" / "ptx_on_cpu").glob("*.cpp")
    return sorted([*(ROOT / "csrc" / "cuda").glob("*.cu"), *HERE.glob("*.cu"), *HERE.glob("bind_*.cpp"), *interpreter])


def build(sanitize: bool = False) -> Path:
    """Compiles what changed and returns the module's file.

    Raises:
        RuntimeError: if something does not compile; the message is the compiler's.
    """
    folder = CACHE / ("sanitized" if sanitize else "plain")
    flags = FLAGS + SANITIZER_FLAGS if sanitize else FLAGS
    with locked(), ThreadPoolExecutor(JOBS) as pool:
        python = pool.submit(compile, HERE / "module.cpp", CACHE, PYTHON_FLAGS)
        objects = [*pool.map(lambda source: compile(source, folder, flags), sources()), python.result()]
        module = folder / f"{MODULE}.so"
        make(module, [CXX, "-shared", *map(str, objects), "-o", str(module), *flags], lambda: objects)
    return module


def load(sanitize: bool = False) -> ModuleType:
    """Builds the module and imports it."""
    path = build(sanitize)
    loader = importlib.machinery.ExtensionFileLoader(MODULE, str(path))
    spec = importlib.util.spec_from_file_location(MODULE, path, loader=loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One process at a time compiles."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def compile(source: Path, folder: Path, flags: list[str]) -> Path:
    """The object file of `source`, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    compiled, dependencies = folder / f"{source.name}.o", folder / f"{source.name}.d"

    def files() -> list[Path]:  # from "x.o: x.cu a.h \\\n b.h", which the compiler wrote
        text = dependencies.read_text().replace("\\\n", " ")
        return [Path(name) for name in shlex.split(text.split(":", 1)[1])]

    command = [CXX, "-x", "c++", "-c", str(source), "-o", str(compiled), "-MMD", "-MF", str(dependencies), *flags]
    make(compiled, command, files)
    return compiled


def make(output: Path, command: list[str], inputs: Callable[[], list[Path]]) -> None:
    """Runs `command`, which makes `output`, unless the same command has made it from the same inputs."""

    def digest() -> str:
        sha = hashlib.sha256(shlex.join(command).encode())
        for path in inputs():
            sha.update(path.read_bytes())
        return sha.hexdigest()

    stamp = output.with_name(output.name + ".sha256")
    try:
        if output.exists() and stamp.read_text() == digest():
            return
    except FileNotFoundError:  # never made, or an input is gone
        pass
    stamp.unlink(missing_ok=True)
    # The sanitizer's library, preloaded into Python for a sanitized module, is not for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stderr}")
    stamp.write_text(digest())
