# SPDX-License-Identifier: MIT
"""Runs Python on an emulated ARM CPU, with the CPU kernels compiled for it, as in

    python -m tests.emulated_arm -m pytest tests/ops -k "not compile"

Needs Debian 12 with the packages g++-aarch64-linux-gnu and qemu-user, `dpkg --add-architecture arm64 && apt-get update`, and once the
network: Python, torch and pytest for ARM take 6 GB in build/emulated_arm.  Three kinds of tests fail there: those that start
processes, one that asks the system for its memory, and those of a weight without elements, in which torch's own convolution crashes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / "build" / "emulated_arm"
SYSTEM, SITE, CHECKOUT = HOME / "system", HOME / "site", HOME / "checkout"
PYTHON = "3.11"  # Debian's
DEBIAN_PACKAGES = [
    f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib", "libc6", "libgcc-s1", "libstdc++6",
    "libgomp1", "zlib1g", "libexpat1", "libffi8", "libssl3", "libbz2-1.0", "liblzma5", "libsqlite3-0", "libuuid1",
    "libreadline8", "libtinfo6", "libncursesw6", "libatomic1",
]  # fmt: skip
PYTHON_PACKAGES = ["torch==2.13.0", "numpy", "pytest", "hypothesis", "expecttest"]
# What torch looks at to know the CPU, and fails without: a Neoverse N1 with two cores.
CPU = (
    "processor : {}\nFeatures : fp asimd aes crc32 atomics asimdrdm asimddp\nCPU implementer : 0x41\n"
    "CPU architecture: 8\nCPU variant : 0x3\nCPU part : 0xd0c\nCPU revision : 1\n\n"
)


def run(*command: str | Path, cwd: Path = ROOT) -> None:
    subprocess.run(command, cwd=cwd, check=True)


def make_system() -> None:
    """Python and the libraries of the system."""
    packages = HOME / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    run("apt-get", "download", "-qq", *(f"{name}:arm64" for name in DEBIAN_PACKAGES), cwd=packages)
    for package in packages.glob("*.deb"):
        run("dpkg", "-x", package, SYSTEM)
    (SYSTEM / "proc").mkdir()
    (SYSTEM / "proc/cpuinfo").write_text("".join(map(CPU.format, range(2))))
    cpus = SYSTEM / "sys/devices/system/cpu"
    for core in range(2):
        identification = cpus / f"cpu{core}/regs/identification"
        identification.mkdir(parents=True)
        (identification / "midr_el1").write_text("0x00000000413fd0c1\n")
    for name in ("possible", "present", "online"):
        (cpus / name).write_text("0-1\n")


def make_site() -> None:
    """torch, and what the tests need."""
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(17, 36)]
    wheels = ["--only-binary=:all:", f"--python-version={PYTHON}", "--no-compile", "--target", SITE]
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        *wheels,
        *platforms,
        "--platform=manylinux2014_aarch64",
        *PYTHON_PACKAGES,
    )


def make_library(library: Path) -> None:
    """_cpu.so, with the flags of setup.py."""
    torch = SITE / "torch"
    flags = ["-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000", f"-I{ROOT / 'csrc'}", f"-isystem{torch / 'include'}"]
    sources = [*(ROOT / "csrc/cpu").glob("*.cpp"), *(ROOT / "csrc/ops").glob("*.cpp")]
    objects = {library.parent / f"{s.parent.name}_{s.stem}.o": s for s in sources if not s.stem.endswith("_cuda")}
    library.parent.mkdir(exist_ok=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compile = ("aarch64-linux-gnu-g++", *flags, "-c")
        list(pool.map(lambda item: run(*compile, item[1], "-o", item[0]), objects.items()))
    libraries = [f"-L{torch / 'lib'}", "-ltorch", "-ltorch_cpu", "-Wl,--allow-shlib-undefined"]
    run("aarch64-linux-gnu-g++", "-shared", "-o", library, *objects, *libraries)


def main(arguments: list[str]) -> int:
    library = HOME / "library" / "_cpu.so"
    if not SYSTEM.exists():
        make_system()
    if not SITE.exists():
        make_site()
    newest = max(path.stat().st_mtime for path in (ROOT / "csrc").rglob("*.*"))
    if not library.exists() or library.stat().st_mtime < newest:
        make_library(library)
    shutil.rmtree(CHECKOUT, ignore_errors=True)
    for folder in ("genimg_fast", "tests", "benchmarks"):
        shutil.copytree(ROOT / folder, CHECKOUT / folder, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", CHECKOUT)
    shutil.copy(library, CHECKOUT / "genimg_fast")
    environment = {"PYTHONPATH": f"{CHECKOUT}:{SITE}", "LD_LIBRARY_PATH": SITE / "torch/lib", "OMP_NUM_THREADS": 1}
    settings = [word for name, value in environment.items() for word in ("-E", f"{name}={value}")]
    # without SVE, which the kernels do not use either
    emulator = ["qemu-aarch64", "-cpu", "neoverse-n1", "-L", SYSTEM, *settings]
    return subprocess.run([*emulator, SYSTEM / f"usr/bin/python{PYTHON}", *arguments], cwd=CHECKOUT).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
