# SPDX-License-Identifier: MIT
"""`genimg-fast doctor`"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from genimg_fast.cli import _common

if TYPE_CHECKING:
    import torch


def add_parser(subparsers) -> argparse.ArgumentParser:
    return _common.add_parser(
        subparsers,
        "doctor",
        "Say what is installed and what each op runs on and why, and check each op that has kernels against the reference.",
        "genimg-fast doctor",
    )


def run(args: argparse.Namespace) -> int:
    import torch

    from genimg_fast._table import format_table

    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    for line in _installed():
        print(line)
    healthy = True
    for device in devices:
        rows = [_examine(op, device) for op in _ops()]
        print(f"\nops on {_device_name(device)}\n")
        print(format_table(("op", "runs on", "parity", "largest difference", "why"), rows))
        healthy = healthy and not any(row[2] == "FAIL" for row in rows)
    if not healthy:
        print("\nFAIL: a kernel differs from the reference. GENIMG_FAST_BACKEND=reference runs without the kernels.")
    return 0 if healthy else 1


def _ops() -> list[str]:
    from genimg_fast import _parity

    return list(_parity.CASES)


def _installed() -> list[str]:
    import platform

    import torch

    import genimg_fast
    from genimg_fast import _backend, _extension

    isas = ", ".join(_extension.available_cpu_isas())
    facts = {
        "python": platform.python_version(),
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        "genimg_fast": genimg_fast.__version__,
        "CPU kernels": _extension.status("cpu").detail,
        "instruction set": f"{_extension.cpu_isa()} (this CPU can: {isas})" if isas else "none: no CPU kernels",
        "threads": str(torch.get_num_threads()),
        "CUDA kernels": _extension.status("cuda").detail,
        "CUDA built for": _cuda_architectures(),
        "GPUs": ", ".join(map(_gpu, range(torch.cuda.device_count()))) or "none that torch can use",
        "backend": _backend.current_backend(),
    }
    width = max(map(len, facts))
    return [f"{name.ljust(width)}  {value}" for name, value in facts.items()]


def _gpu(index: int) -> str:
    import torch

    capability = ".".join(map(str, torch.cuda.get_device_capability(index)))
    return f"{torch.cuda.get_device_name(index)} (compute capability {capability})"


def _cuda_architectures() -> str:
    """The GPU architectures that _cuda.so holds machine code for."""
    from genimg_fast import _extension

    library = Path(_extension.__file__).with_name("_cuda.so")
    if not library.exists():
        return f"nothing: {library.name} was not built"
    # Each embedded GPU binary carries the options that it was assembled with.
    found = {match.decode() for match in re.findall(rb"-arch (sm_\d+[a-z]?)", library.read_bytes())}
    return ", ".join(sorted(found, key=lambda arch: (len(arch.rstrip("af")), arch))) or "unknown"


def _device_name(device: torch.device) -> str:
    import torch

    return str(device) if device.type == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})"


def _examine(op: str, device: torch.device) -> tuple[str, str, str, str, str]:
    """One row of the table: op, backend, parity, largest difference, reason."""
    from genimg_fast import _extension, _parity

    decisions = _parity.decisions(op, device)
    native = [d for d in decisions if d.native]
    reasons = "; ".join(dict.fromkeys(d.reason for d in decisions if not d.native))
    runs_on = "reference" if not native else "native" if len(native) == len(decisions) else "both"
    if _extension.why_not_on(device):
        return op, runs_on, "-", "-", reasons
    kernels = _extension.cpu_isa() if device.type == "cpu" else "CUDA"
    try:
        parity = _parity.check(op, device)
    except RuntimeError as error:  # a kernel that does not even run is what this command is there to find
        return op, runs_on, "FAIL", "-", " ".join(str(error).split())
    return (
        op,
        runs_on,
        "OK" if parity.ok else "FAIL",
        f"{parity.difference:.1e}",
        reasons or f"the {kernels} kernels take it",
    )
