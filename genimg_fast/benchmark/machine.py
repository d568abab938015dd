# SPDX-License-Identifier: MIT
"""Which machine and which code a measurement comes from."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

import genimg_fast
from genimg_fast import _extension

_PACKAGES = ("torch", "genimg-fast", "onnx", "onnxruntime", "openvino", "numpy")


def describe(threads: int, isa: str | None = None) -> dict[str, object]:
    """The threads that a measurement uses and the instruction set that it is held to; None: the CPU's best."""
    return {
        "cpu": _cpu_name(),
        "cores": physical_cores(),
        "threads": threads,
        "isa": isa or _extension.cpu_isa(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def in_words(machine: dict) -> str:
    gpu = f", {machine['gpu']}" if machine["gpu"] else ""
    counts = f"{machine['cores']} cores, {machine['threads']} threads"
    return f"{machine['cpu']}, {counts}, {machine['isa']}{gpu}, torch {machine['versions']['torch']}"


def physical_cores() -> int:
    """Cores that this process may use, hardware threads of a core counted once."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    return len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()
    except OSError:
        return str(cpu)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    """The model name with family and model numbers, since a virtual machine's name alone says little."""
    fields: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().split("\n\n")[0].splitlines():
            key, _, value = line.partition(":")
            fields[key.strip()] = value.strip()
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields and "model" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def _commit() -> str | None:
    """The checkout that genimg_fast runs from, "-dirty" if it was changed; None outside a git checkout."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=Path(genimg_fast.__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()
