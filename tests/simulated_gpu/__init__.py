# SPDX-License-Identifier: MIT
"""A GPU for PyTorch, simulated on the CPU: `torch.device("cuda")` where there is none.

    python -m tests.simulated_gpu -m pytest tests/contract -k cuda

runs everything of ours that a GPU would: the Python that chooses kernels, the CUDA registration files of csrc/ops, and the
kernels of csrc/cuda, by the shim of tests/cuda_on_cpu.  PyTorch's own operators run on the CPU (device.cpp).  Streams, events
and CUDA graphs are there (torch_cuda.py), and so are autocast, autograd's thread for the device, torch.compile and opcheck.

What it cannot show: whatever tests/cuda_on_cpu cannot (speed, the memory model, what nvcc makes of the code); work that
overlaps, since everything runs at once; cuDNN's choices, and TF32 in PyTorch's own convolutions; several GPUs; collectives on
CUDA tensors; Triton.
"""

from __future__ import annotations

import importlib.util
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import gpu_ledger
from tests.cuda_on_cpu import build as shim

HERE = Path(__file__).resolve().parent
FOLDER = shim.CACHE.parent / "simulated_gpu"
VARIABLE = "GENIMG_FAST_SIMULATED_GPU"
"""Of the environment: the library that a process loads when it starts."""


def is_here() -> bool:
    """Whether this process sees the simulated GPU."""
    return VARIABLE in os.environ


def environment() -> dict[str, str]:
    """For a process, and those that it starts, which shall see the simulated GPU."""
    path = os.pathsep.join(filter(None, [str(HERE / "site"), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, VARIABLE: str(build())}


def build() -> Path:
    """Compiles what changed and returns the library.

    Raises:
        RuntimeError: if something does not compile; the message is the compiler's.
    """
    torch = torch_folder()
    headers = [f"-I{shim.HERE}", *(f"-isystem{torch}/include{folder}" for folder in ("", "/torch/csrc/api/include"))]
    stable = ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"]  # as setup.py
    csrc = shim.ROOT / "csrc"
    jobs = [(source, shim.CACHE / "plain", shim.FLAGS) for source in sorted((csrc / "cuda").glob("*.cu"))]
    jobs += [(source, FOLDER, [*shim.FLAGS, *headers, *stable]) for source in sorted((csrc / "ops").glob("*_cuda.cpp"))]
    jobs += [(HERE / "device.cpp", FOLDER, [*shim.FLAGS, *headers, "-std=c++20"])]  # which PyTorch's own headers want
    with shim.locked(), ThreadPoolExecutor(shim.JOBS) as pool:
        objects = list(pool.map(lambda job: shim.compile(*job), jobs))
        library = FOLDER / "libsimulated_gpu.so"
        libraries = [f"-L{torch}/lib", "-ltorch", "-ltorch_cpu", "-lc10"]
        own_symbols = "-Wl,-Bsymbolic"  # and not those of a torch that has CUDA
        build_id = f"-Wl,--build-id=0x{gpu_ledger.source_hash()}"  # as setup.py
        command = [
            shim.CXX,
            "-shared",
            own_symbols,
            build_id,
            *map(str, objects),
            "-o",
            str(library),
            *shim.FLAGS,
            *libraries,
        ]
        shim.make(library, command, lambda: objects)
    return library


def torch_folder() -> Path:
    """Without importing torch."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
