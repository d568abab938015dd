# SPDX-License-Identifier: MIT
"""Loads the native libraries, once, at import.  Never raises: what could not be loaded is told by `status()`.

`_cpu` holds the operator schemas and the CPU kernels.  `_cuda` adds CUDA kernels to the same operators and is loaded only
by a torch that was built with CUDA, since on another one its symbols do not resolve.
"""

from __future__ import annotations

import functools
import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

_Function = TypeVar("_Function", bound=Callable[..., Any])

_PACKAGE = Path(__file__).resolve().parent
_OLDEST_TORCH = (2, 11)  # whose stable ABI the libraries are built for
_GPU_TYPES = ("cuda",)
_OLDEST_GPU = (8, 0)  # the compute capability from which on there are cp.async and mma of bfloat16 and tf32
_ISA_NAMES = ("portable", "avx2", "avx512")
_WHY_NOT_BUILT = {
    "_cpu": "no C++ compiler at install time, Windows, or GENIMG_FAST_BUILD=0",
    "_cuda": "no CUDA toolkit at install time, or GENIMG_FAST_CUDA=0",
}


class LibraryStatus(NamedTuple):
    loaded: bool
    detail: str
    """The file that was loaded, or why none was."""


def _load(name: str) -> LibraryStatus:
    path = _PACKAGE / f"{name}.so"
    if not path.exists():
        return LibraryStatus(False, f"{path.name} was not built ({_WHY_NOT_BUILT[name]})")
    if tuple(map(int, torch.__version__.split(".")[:2])) < _OLDEST_TORCH:
        oldest = ".".join(map(str, _OLDEST_TORCH))
        return LibraryStatus(False, f"{path.name} needs torch {oldest} or newer, and this is torch {torch.__version__}")
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        reason = str(error.__cause__ or error)  # torch wraps what the loader said
        return LibraryStatus(False, f"{path.name} did not load: {reason.splitlines()[0]}")
    return LibraryStatus(True, str(path))


def _load_cuda(cpu: LibraryStatus) -> LibraryStatus:
    if torch.version.cuda is None:
        return LibraryStatus(False, "this torch was built without CUDA")
    if not cpu.loaded:
        return LibraryStatus(False, "it needs the operator schemas of _cpu.so, which is not loaded")
    return _load("_cuda")


_CPU = _load("_cpu")
_CUDA = _load_cuda(_CPU)


def status(device_type: str) -> LibraryStatus:
    """Whether the kernels for `device_type` ("cpu" or "cuda") are there, and from which file or why not."""
    if device_type == "cpu":
        return _CPU
    if device_type == "cuda":
        return _CUDA
    return LibraryStatus(False, f"there are no kernels for device type '{device_type}' (only cpu and cuda)")


def constant_to_compile(function: _Function) -> _Function:
    """`torch.compiler.assume_constant_result`, which sets this attribute and imports all of torch._dynamo for it: seconds."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_to_compile  # torch.compile asks once, while it traces
def why_not_on(device: torch.device) -> str | None:
    """Why there are no kernels for a device, or None: in one line."""
    library = status(device.type)
    if not library.loaded:
        return library.detail
    return _why_not_on_gpu(device.index) if device.type in _GPU_TYPES else None


@functools.cache
def _why_not_on_gpu(index: int) -> str | None:
    if not torch.cuda.is_available():
        return None  # a fake tensor's GPU: nothing is launched
    capability = torch.cuda.get_device_capability(index)
    if capability >= _OLDEST_GPU:
        return None
    found, oldest = (".".join(map(str, version)) for version in (capability, _OLDEST_GPU))
    return (
        f"{torch.cuda.get_device_name(index)} has compute capability {found}; the CUDA kernels need {oldest} or newer"
    )


def reject_stale(operator: str) -> None:
    """Treats the libraries as not there: they lack `operator`, so they were built from other sources than these."""
    global _CPU, _CUDA
    reason = f"it has no operator {operator}: it was built from another version of the sources; build it again"
    _CPU, _CUDA = (LibraryStatus(False, f"{s.detail}: {reason}") if s.loaded else s for s in (_CPU, _CUDA))


_asked = os.environ.get("GENIMG_FAST_CPU_ISA")
if _asked and _asked not in _ISA_NAMES:
    warnings.warn(
        f"genimg_fast: GENIMG_FAST_CPU_ISA is {_asked!r} and is ignored; allowed are {', '.join(map(repr, _ISA_NAMES))}",
        RuntimeWarning,
        stacklevel=2,
    )


# remembered: what is chosen by it is chosen in each pass, also by code that torch.compile traces
_cpu_isa = _ISA_NAMES[torch.ops.genimg_fast.cpu_isa()] if _CPU.loaded else None


def cpu_isa() -> str | None:
    """The instruction set that the CPU kernels run on: "portable", "avx2", "avx512", or None without the library."""
    return _cpu_isa if _CPU.loaded else None


def available_cpu_isas() -> tuple[str, ...]:
    """The instruction sets that this CPU can run, narrowest first; empty without the library."""
    return _ISA_NAMES[: torch.ops.genimg_fast.best_cpu_isa() + 1] if _CPU.loaded else ()


def set_cpu_isa(name: str) -> None:
    """Runs the CPU kernels on the instruction set `name` from now on.

    Raises:
        ValueError: if this CPU lacks it, or there is no such name.
    """
    if name not in available_cpu_isas():
        raise ValueError(
            f"instruction set {name!r} is not available; this machine has {', '.join(available_cpu_isas())}"
        )
    global _cpu_isa
    torch.ops.genimg_fast.set_cpu_isa(_ISA_NAMES.index(name))
    _cpu_isa = name


def build_info() -> dict[str, object]:
    """What is installed, as a dictionary: versions, libraries, instruction set, GPUs."""
    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "torch": torch.__version__,
        "torch.version.cuda": torch.version.cuda,
        "python": platform.python_version(),
        "cpu_library": _CPU.detail,
        "cpu_isa": cpu_isa(),
        "cpu_isas": available_cpu_isas(),
        "cpu_threads": torch.get_num_threads(),
        "cuda_library": _CUDA.detail,
        "gpus": gpus,
        "GENIMG_FAST_BACKEND": os.environ.get("GENIMG_FAST_BACKEND", "auto"),
    }


def show_config() -> str:
    """`build_info()` as lines of text, to print or to paste into a bug report."""
    return "\n".join(f"{key:20} {value}" for key, value in build_info().items())
