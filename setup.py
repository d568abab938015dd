# SPDX-License-Identifier: MIT
"""Builds the native libraries: `_cpu` wherever there is GCC or Clang, `_cuda` wherever there is nvcc; on Windows neither.

Neither is a Python module.  Both are plain shared libraries that register operators with torch's dispatcher through
LibTorch's stable ABI, so one binary serves every Python >= 3.10 and every torch >= 2.11.

Environment:
    GENIMG_FAST_BUILD=0      build no native library (the package then runs on its PyTorch reference)
    GENIMG_FAST_CUDA=0|1     skip, or insist on, the CUDA library (default: build it when nvcc is found)
    TORCH_CUDA_ARCH_LIST     the usual list; default "8.0;8.6;8.9;9.0a;10.0+PTX"
    GENIMG_FAST_SANITIZE=1   with AddressSanitizer and UndefinedBehaviorSanitizer, for `make sanitize`
    CXX                      the C++ compiler (default: c++, g++ or clang++)
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # where builds are isolated it is not there

from benchmarks.gpu_ledger import source_hash  # noqa: E402

OLDEST_TORCH = (2, 11)  # that the binaries load into
TORCH_TARGET_VERSION = "0x020b000000000000"  # the same, as the stable headers want it
CUDA_ARCHITECTURES = "8.0;8.6;8.9;9.0a;10.0+PTX"
# -O1 halves the time to compile; -g1: reports name lines; -fno-wrapv: with Python's own -fwrapv no overflow would show.
SANITIZER_FLAGS = ["-O1", "-g1", "-fno-wrapv", "-fno-omit-frame-pointer"]
SANITIZER_FLAGS += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def say(message: str) -> None:
    print(f"genimg_fast: {message}", file=sys.stderr)


def find_cxx() -> str | None:
    """The C++ compiler; what a Mac without the developer tools calls c++ is none."""
    for name in (os.environ.get("CXX"), "c++", "g++", "clang++"):
        path = shutil.which(name) if name else None
        if path and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return None


def find_cuda_home() -> Path | None:
    """The CUDA toolkit.  It decides what is built, not a GPU: build machines rarely have one."""
    nvcc = shutil.which("nvcc")
    candidates = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), nvcc and Path(nvcc).resolve().parent.parent]
    for home in (Path(c) for c in [*candidates, "/usr/local/cuda"] if c):
        if (home / "bin" / "nvcc").exists() and (home / "include" / "cuda_runtime.h").exists():
            return home
    return None


def torch_version() -> tuple[int, int]:
    import torch

    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def check_cuda_version(home: Path) -> None:
    """Ends the build if the toolkit is of another major version than torch's CUDA.

    Without CUDA in torch any will do, and is torch's from here on: BuildExtension tells ninja of the headers that a .cu
    includes only where torch has a version, and without that a kernel would not be made anew when one of them changes.
    """
    import torch

    printed = subprocess.run([home / "bin" / "nvcc", "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release (\d+)\.(\d+)", printed)
    if release is not None and torch.version.cuda is None:
        torch.version.cuda = f"{release[1]}.{release[2]}"
    if release is None or release[1] == torch.version.cuda.partition(".")[0]:
        return
    sys.exit(
        f"genimg_fast: the CUDA toolkit in {home} is version {release[1]}.{release[2]}, but this torch was built with CUDA"
        f" {torch.version.cuda}.\nPoint CUDA_HOME to a toolkit {torch.version.cuda.partition('.')[0]}.x, or set"
        " GENIMG_FAST_CUDA=0 to build without the CUDA kernels."
    )


def native_extensions() -> tuple[list, dict]:
    if os.environ.get("GENIMG_FAST_BUILD") == "0":
        say("GENIMG_FAST_BUILD=0: no native library; everything runs on the PyTorch reference.")
        return [], {}
    if sys.platform == "win32":  # where BuildExtension takes Microsoft's compiler, whatever else there is
        say("the kernels need GCC or Clang: no native library on Windows; everything runs on the PyTorch reference.")
        return [], {}
    cxx = find_cxx()
    if cxx is not None and cxx.endswith("clang++"):
        os.environ["CXX"] = cxx  # BuildExtension looks for c++
    if cxx is None:
        say("no C++ compiler found: no native library; everything runs on the PyTorch reference.")
        return [], {}
    try:
        from torch.utils import cpp_extension
        from torch.utils.cpp_extension import BuildExtension, include_paths, library_paths
    except ImportError:
        sys.exit(
            "genimg_fast builds its kernels against the torch you already have, and this build cannot see one. Install\n"
            "torch >= 2.11 first and then run `pip install --no-build-isolation .`: without that flag pip builds in an\n"
            "empty environment that hides your torch."
        )
    if (version := torch_version()) < OLDEST_TORCH:
        sys.exit(
            f"genimg_fast builds against torch {'.'.join(map(str, OLDEST_TORCH))} or newer, and this is torch {version[0]}.{version[1]}."
            " Run `pip install -U torch` first."
        )
    from setuptools import Extension

    def library(name: str, sources: list[Path], flags: dict, **kwargs) -> Extension:
        extension = Extension(
            f"genimg_fast.{name}",
            [str(source.relative_to(ROOT)) for source in sorted(sources)],
            include_dirs=[str(ROOT / "csrc")],
            library_dirs=library_paths() + kwargs.pop("library_dirs", []),
            define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET_VERSION), *kwargs.pop("macros", [])],
            extra_compile_args=flags,
            language="c++",
            py_limited_api=True,
            **kwargs,
        )
        return extension

    # -fvisibility-inlines-hidden and -fvisibility=hidden: nothing is exported, registration runs at load.
    # -g0: debug information would make the wheel ten times larger.
    cxx_flags = ["-O3", "-g0", "-Wall", "-Wextra", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
    cxx_flags += [f"-isystem{path}" for path in include_paths()]  # torch's, whose warnings are not ours to mend
    csrc = ROOT / "csrc"
    registration = set(csrc.glob("ops/*.cpp"))
    cuda_registration = set(csrc.glob("ops/*_cuda.cpp"))
    sanitize = os.environ.get("GENIMG_FAST_SANITIZE") == "1"
    if sanitize:
        cxx_flags += SANITIZER_FLAGS  # the last -O and -g win
    extensions = [
        library(
            "_cpu",
            [*(registration - cuda_registration), *csrc.glob("cpu/*.cpp")],
            {"cxx": cxx_flags},
            libraries=["torch", "torch_cpu"],
        )
    ]
    if sanitize:
        controls = [ROOT / "tests" / "sanitize" / "controls.cpp", csrc / "cpu" / "isa.cpp"]
        extensions.append(library("_controls", controls, {"cxx": cxx_flags}))

    cuda_home, wanted = find_cuda_home(), os.environ.get("GENIMG_FAST_CUDA")
    if wanted == "1" and cuda_home is None:
        sys.exit("genimg_fast: GENIMG_FAST_CUDA=1 but no CUDA toolkit was found on PATH, in CUDA_HOME or CUDA_PATH.")
    if cuda_home and wanted != "0":
        check_cuda_version(cuda_home)
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
        cpp_extension.CUDA_HOME = str(cuda_home)  # which a CPU-only torch leaves unset
        # The kernels for Hopper's own instructions are empty for any other architecture, sm_90 without the "a" included.
        wgmma = ["-DGENIMG_FAST_HAS_SM90A"] * ("9.0a" in os.environ["TORCH_CUDA_ARCH_LIST"])
        extensions.append(
            library(
                "_cuda",
                [*cuda_registration, *csrc.glob("cuda/*.cu")],
                {"cxx": cxx_flags, "nvcc": ["-O3", "-Xcompiler", "-fvisibility=hidden", *wgmma]},
                # libtorch.so by name, though nothing of ours is in it: where torch has CUDA it brings libtorch_cuda.so,
                # which is not there to link against where torch has none.
                libraries=["cudart_static", "rt", "dl", "pthread", "torch_cpu"],
                # The build id is that of the sources: `make gpu-check` tells by it a library that was built from others.
                extra_link_args=["-Wl,--no-as-needed", "-ltorch", f"-Wl,--build-id=0x{source_hash()}"],
                library_dirs=[str(cuda_home / "lib64")],
                macros=[("USE_CUDA", None)],  # the stable headers declare their CUDA functions under it
            )
        )
        extensions[-1].include_dirs.append(str(cuda_home / "include"))
    else:
        say("no CUDA library: " + ("GENIMG_FAST_CUDA=0." if wanted == "0" else "no CUDA toolkit was found."))
    return extensions, {"build_ext": BuildExtension.with_options(no_python_abi_suffix=True)}


ext_modules, cmdclass = native_extensions()
options = {"bdist_wheel": {"py_limited_api": "cp310"}} if ext_modules else {}
setup(ext_modules=ext_modules, cmdclass=cmdclass, options=options)
