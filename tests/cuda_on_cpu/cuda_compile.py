# SPDX-License-Identifier: MIT
"""Compiles the CUDA kernels for the GPUs that the wheel serves, and tells what each kernel costs.  Needs nvcc, no GPU.

    python -m tests.cuda_on_cpu.cuda_compile [--arch 90a] [FILE.cu ...]

Exits with 1 if a file does not compile, a kernel spills registers to memory, or its wgmma wait for each other.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
JOBS = 2
FLAGS = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", f"-I{ROOT / 'csrc'}"]
# What torch's BuildExtension adds: no operators and no implicit conversions on half types.
FLAGS += [
    f"-D__CUDA_NO_{name}__"
    for name in ("HALF_OPERATORS", "HALF_CONVERSIONS", "BFLOAT16_CONVERSIONS", "HALF2_OPERATORS")
]


class Kernel(NamedTuple):
    name: str
    architecture: str
    registers: int
    shared_bytes: int
    """Static; the library's kernels use dynamic shared memory."""
    stack_bytes: int
    spill_bytes: int
    """Stores and loads together."""


def sources() -> list[Path]:
    """The library's kernels, and the ones that exercise csrc/cuda/ptx.cuh and ptx_sm90.cuh."""
    controls = (ROOT / "tests" / "cuda_on_cpu").glob("ptx*_controls.cu")
    return [*sorted((ROOT / "csrc" / "cuda").glob("*.cu")), *sorted(controls)]


def architectures() -> list[str]:
    """setup.py's, as nvcc writes them: ["80", ..., "90a", "100"]."""
    listed = re.search(r'^CUDA_ARCHITECTURES = "(.+)"$', (ROOT / "setup.py").read_text(), re.MULTILINE)
    assert listed, "setup.py no longer sets CUDA_ARCHITECTURES"
    return [name.removesuffix("+PTX").replace(".", "") for name in listed[1].split(";")]


def compile_file(source: Path, architecture: str) -> list[Kernel]:
    """Compiles one file for one architecture.

    Raises:
        RuntimeError: if it does not compile; the message is the compiler's.
    """
    command = ["nvcc", *FLAGS, f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v", "-o", "/dev/null", str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{source} does not compile for sm_{architecture}:\n{done.stdout}{done.stderr}")
    if serialized := re.search(
        r"wgmma\.mma_async instructions are serialized due to (.*) in the function", done.stderr
    ):
        raise RuntimeError(f"{source}: wgmma one after the other, for sm_{architecture}: {serialized[1]}")
    return parse(done.stdout + done.stderr)


def parse(ptxas_output: str) -> list[Kernel]:
    """Reads what `ptxas -v` prints."""
    kernels = []
    for part in ptxas_output.split("Compiling entry function ")[1:]:

        def number(pattern: str, part: str = part) -> int:
            return sum(int(n) for n in re.findall(pattern, part))

        entry = re.match(r"'(\S+)' for 'sm_(\w+)'", part)
        if not (entry and "spill stores" in part and "Used " in part):
            raise RuntimeError(f"ptxas -v prints something new:\n{part}")
        kernels.append(
            Kernel(
                name=_short_name(entry[1]),
                architecture=entry[2],
                registers=number(r"Used (\d+) registers"),
                shared_bytes=number(r"(\d+) bytes smem"),
                stack_bytes=number(r"(\d+) bytes stack frame"),
                spill_bytes=number(r"(\d+) bytes spill"),
            )
        )
    return kernels


def _short_name(mangled: str) -> str:
    """kl_kernel<float, 4> from the mangled genimg_fast::cuda::(anonymous namespace)::kl_kernel<float, 4>(...)."""
    name = subprocess.run(["c++filt", mangled], capture_output=True, text=True, check=True).stdout.strip()
    name = re.sub(r"\(anonymous namespace\)::|genimg_fast::cuda::|^void ", "", name)
    return name.split("(")[0]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Compile the CUDA kernels and list registers, shared memory and spills."
    )
    parser.add_argument("files", nargs="*", type=Path, help="default: all")
    parser.add_argument("--arch", action="append", help="such as 90a; may be given again; default: setup.py's list")
    options = parser.parse_args(argv)

    failed = False
    kernels: list[Kernel] = []
    with ThreadPoolExecutor(JOBS) as pool:
        jobs = [
            pool.submit(compile_file, source, architecture)
            for source in options.files or sources()
            for architecture in options.arch or architectures()
        ]
        for job in jobs:
            try:
                kernels += job.result()
            except RuntimeError as error:
                failed = True
                print(error, file=sys.stderr)

    print(f"{'kernel':56} {'arch':>5} {'registers':>9} {'shared':>7} {'stack':>6} {'spills':>7}")
    for kernel in kernels:
        print("{:56} {:>5} {:>9} {:>7} {:>6} {:>7}".format(*kernel))
    spilling = sorted({f"{kernel.name} (sm_{kernel.architecture})" for kernel in kernels if kernel.spill_bytes})
    if spilling:
        print("spilling: " + ", ".join(spilling), file=sys.stderr)
    return int(failed or bool(spilling))


if __name__ == "__main__":
    sys.exit(main())
