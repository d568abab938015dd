# SPDX-License-Identifier: MIT
"""A GPU simulated on the CPU."""

from __future__ import annotations

import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.cuda_on_cpu import build as shim

HERE = Path(__file__).resolve().parent


def build() -> Path:
    """Compiles what changed and returns the library.

    Raises:
        RuntimeError: if something does not compile; the message is the compiler's.
    """
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    torch = Path(spec.origin).parent
    includes = ["-isystem", f"{torch}/include", "-isystem", f"{torch}/include/torch/csrc/api/include"]
    with_torch = [f"-I{HERE.parent / 'cuda_on_cpu'}", *includes]
    registration = [*with_torch, "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    csrc = shim.ROOT / "csrc"
    folder = shim.CACHE.parent / "simulated_gpu"
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(path, shim.FLAGS) for path in sorted((csrc / "cuda").glob("*.cu"))]
    jobs += [(path, [*shim.FLAGS, *registration]) for path in sorted((csrc / "ops").glob("*_cuda.cpp"))]
    jobs += [(HERE / "device.cpp", [*shim.FLAGS, *with_torch])]
    with shim.locked(), ThreadPoolExecutor(shim.JOBS) as pool:
        objects = list(pool.map(lambda job: shim.compile(job[0], shim.CACHE / "plain" if job[0].suffix == ".cu" else folder, job[1]), jobs))
        library = folder / "libsimulated_gpu.so"
        libraries = [f"-L{torch}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
        shim.make(library, [shim.CXX, "-shared", *map(str, objects), "-o", str(library), *shim.FLAGS, *libraries], lambda: objects)
    return library


def environment() -> dict[str, str]:
    """For a process, and those that it starts, which shall see the simulated GPU."""
    path = os.pathsep.join(filter(None, [str(HERE / "site"), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "GENIMG_FAST_SIMULATED_GPU": str(build())}
