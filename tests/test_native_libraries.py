# SPDX-License-Identifier: MIT
"""The native libraries as files: what instructions they hold, what they import, and life without them."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from genimg_fast import _extension

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "genimg_fast"

needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason=f"no AVX on {platform.machine()}")


def output_of(*command: str | Path, **options: Any) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, **options).stdout


# ---- Instruction sets.  The CPU library must run on any x86-64 CPU: AVX code may stand only in the functions that are
# chosen at run time.  An inline function of the standard library, compiled for AVX-512 in one file, would be merged with
# those of other files and crash an older CPU wherever it is called.


def instructions(binary: Path) -> Iterator[tuple[str, str]]:
    """(demangled function, instruction) of a library or an object file."""
    function = ""
    for line in output_of("objdump", "-d", "-C", "--no-show-raw-insn", binary).splitlines():
        if header := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            function = header[1]
        elif instruction := re.fullmatch(r"\s*[0-9a-f]+:\s+(\S.*)", line):
            yield function, instruction[1]


def needed_isa(instruction: str) -> str:
    # AVX-512: its registers, the upper sixteen of the narrow ones, or a mask.
    if re.search(r"%zmm|%[xy]mm(1[6-9]|2\d|3[01])\b|%k[0-7]\b", instruction):
        return "avx512"
    # AVX mnemonics begin with v, and no other that a compiler generates does.
    return "avx2" if instruction.startswith("v") else "portable"


def illegal_instructions(binary: Path) -> list[str]:
    found = []
    for function, instruction in instructions(binary):
        # Anywhere in the name: a template instantiated with one of our AVX types is as private to it as its members.
        widest = next((isa for isa in ("avx512", "avx2") if f"genimg_fast::cpu::{isa}::" in function), "portable")
        if _extension._ISA_NAMES.index(needed_isa(instruction)) > _extension._ISA_NAMES.index(widest):
            found.append(f"{function}: {instruction}")
    return found


@needs_x86
def test_avx_code_stands_only_in_functions_chosen_at_run_time():
    library = PACKAGE / "_cpu.so"
    assert illegal_instructions(library) == []
    for isa in ("avx2", "avx512"):  # or nothing was looked at: the library is stripped, or has no such code
        assert any(
            needed_isa(instruction) == isa
            for function, instruction in instructions(library)
            if f"cpu::{isa}::" in function
        )


@needs_x86
@pytest.mark.parametrize(
    ("target", "namespace", "legal"),
    [
        ("avx2", "genimg_fast::cpu::avx2", True),
        ("avx2", "elsewhere", False),
        ("avx512f", "genimg_fast::cpu::avx2", False),
        ("avx512vl", "genimg_fast::cpu::avx512", True),
        ("avx512vl", "elsewhere", False),
        ("sse2", "elsewhere", True),
    ],
)
def test_the_audit_sees_a_merged_inline_function(tmp_path, target, namespace, legal):
    source = f"""
    #pragma GCC target("{target}{",prefer-vector-width=512" if "512" in target else ""}")
    namespace {namespace} {{
    inline __attribute__((noinline)) void scale(float* p, long n) {{ for (long i = 0; i < n; ++i) p[i] *= 3; }}
    void use(float* p, long n) {{ scale(p, n); }}
    }}"""
    (tmp_path / "control.cpp").write_text(source)
    compiled = tmp_path / "control.o"
    output_of(os.environ.get("CXX", "g++"), "-O3", "-c", tmp_path / "control.cpp", "-o", compiled)
    found = illegal_instructions(compiled)
    assert any("scale" in line for line in found) != legal, found


# ---- Imports.  One binary serves every torch >= 2.11 as long as it asks torch for nothing but the stable C functions.

SYSTEM_VERSIONS = ("GLIBC_", "GLIBCXX_", "CXXABI_", "GCC_")
STABLE_TORCH = ("aoti_torch_", "torch_")
TOOLCHAIN = ("__gmon_start__", "_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable")  # weak, in every library


def unexpected_imports(library: Path) -> list[str]:
    unexpected = []
    for line in output_of("nm", "-D", "-u", library).splitlines():
        name, _, version = line.split()[-1].partition("@")
        if not (version.startswith(SYSTEM_VERSIONS) or name.startswith(STABLE_TORCH) or name in TOOLCHAIN):
            unexpected.append(name)
    return unexpected


@pytest.mark.parametrize("name", ["_cpu", "_cuda"])
def test_libraries_import_only_the_stable_abi(name):
    library = PACKAGE / f"{name}.so"
    if name == "_cuda" and not library.exists():
        pytest.skip("_cuda.so was not built: no CUDA toolkit")
    assert unexpected_imports(library) == []
    assert any(line.split()[-1].startswith("aoti_torch_") for line in output_of("nm", "-D", "-u", library).splitlines())


def test_the_import_check_sees_a_cxx_symbol_of_torch(tmp_path):
    (tmp_path / "control.cpp").write_text("namespace c10 { void f(); } void use() { c10::f(); }")
    library = tmp_path / "control.so"
    output_of(os.environ.get("CXX", "g++"), "-shared", "-fPIC", tmp_path / "control.cpp", "-o", library)
    assert "_ZN3c101fEv" in unexpected_imports(library)


# torch keeps its libraries out of the scope that all libraries share, so each of ours must name those that it needs.


def test_the_cuda_library_loads(tmp_path):
    """In a torch that has CUDA; in another one the only function that is missing is supplied."""
    library = PACKAGE / "_cuda.so"
    if not library.exists():
        pytest.skip("_cuda.so was not built: no CUDA toolkit")
    of_cuda = "aoti_torch_get_current_cuda_stream"
    (tmp_path / "supplied.cpp").write_text(f'extern "C" int {of_cuda}(int, void**) {{ return 1; }}')
    supplied = tmp_path / "supplied.so"
    output_of(os.environ.get("CXX", "g++"), "-shared", "-fPIC", tmp_path / "supplied.cpp", "-o", supplied)
    program = f"""
import ctypes, sys, torch
torch.ops.load_library("{PACKAGE / "_cpu.so"}")
if torch.version.cuda is None:
    ctypes.CDLL("{supplied}", ctypes.RTLD_GLOBAL)
torch.ops.load_library("{library}")
print(torch._C._dispatch_has_kernel_for_dispatch_key("genimg_fast::elbo_loss", "CUDA"))
"""
    assert output_of(sys.executable, "-c", program).strip() == "True"
    # Which library brings that function is not seen where it is supplied: libtorch.so brings torch's CUDA library.
    assert "[libtorch.so]" in output_of("readelf", "-d", library)


@pytest.mark.parametrize("folder", ["cpu", "ops"])
def test_sources_are_cxx17(folder):
    """As which torch 2.11 compiles them, where newer ones take C++20.  tests/cuda_on_cpu does so with csrc/cuda."""
    headers = Path(torch.__file__).parent / "include"
    flags = ["-std=c++17", "-fsyntax-only", "-w", "-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    includes = [f"-I{ROOT / 'csrc'}", f"-isystem{headers}", f"-isystem{headers / 'torch/csrc/api/include'}"]
    output_of(os.environ.get("CXX", "g++"), *flags, *includes, *sorted((ROOT / "csrc" / folder).glob("*.cpp")))


@pytest.mark.parametrize("target", ["aarch64-macos", "x86_64-linux-gnu"])
def test_sources_compile_with_clang(target, tmp_path):
    """Apple's compiler, and many a user's elsewhere: in the wheel of Zig it is a Clang with the headers of other systems."""
    pytest.importorskip("ziglang")
    headers = Path(torch.__file__).parent / "include"
    flags = ["-target", target, "-std=c++20", "-O0", "-g0", "-fno-sanitize=undefined", "-Wall", "-Wextra", "-Werror"]
    flags += ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
    includes = [f"-I{ROOT / 'csrc'}", f"-isystem{headers}"]
    sources = [*(ROOT / "csrc/cpu").glob("*.cpp"), *(ROOT / "csrc/ops").glob("*.cpp")]
    for source in sorted(source for source in sources if not source.stem.endswith("_cuda")):
        command = [sys.executable, "-m", "ziglang", "c++", *flags, *includes, "-c", source, "-o", tmp_path / "object.o"]
        output_of(*command)


# ---- Other machines, imitated in a process of their own.

PARITY = """
import torch, genimg_fast
from genimg_fast import _extension
from genimg_fast.ops.gaussian_kl_loss import gaussian_kl_loss

def run(backend):
    mu, logvar = (torch.linspace(-2, 2, 1003).requires_grad_() for _ in range(2))
    with genimg_fast.use_backend(backend):
        loss = gaussian_kl_loss(mu, logvar)
        loss.backward()
    return loss.detach(), mu.grad, logvar.grad
"""


def run_python(program: str, folder: Path = ROOT, **environment: str) -> str:
    command = [sys.executable, "-c", PARITY + program]
    done = subprocess.run(command, cwd=folder, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_environment_variable_chooses_the_instruction_set(isa):
    """One that this CPU lacks is not chosen."""
    available = _extension.available_cpu_isas()
    program = """
torch.testing.assert_close(run("native"), run("reference"), rtol=1e-5, atol=1e-9)
print(_extension.cpu_isa())
"""
    chosen = run_python(program, GENIMG_FAST_CPU_ISA=isa).strip()
    assert chosen == (isa if isa in available else available[-1])


def test_a_mistyped_instruction_set_is_told():
    program = """
print(_extension.cpu_isa(), [str(w.message) for w in seen])
"""
    before = (
        "import warnings; seen = []; warnings.showwarning = lambda m, *_: seen.append(warnings.WarningMessage(m, *_))"
    )
    command = [sys.executable, "-c", f"{before}\n{PARITY}{program}"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"GENIMG_FAST_CPU_ISA": "avx"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "GENIMG_FAST_CPU_ISA is 'avx' and is ignored; allowed are 'portable', 'avx2', 'avx512'" in done.stdout
    assert done.stdout.startswith(_extension.available_cpu_isas()[-1])


def test_without_the_libraries_everything_runs_on_the_reference(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "genimg_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    program = """
loss, *grads = run("auto")
assert loss.isfinite() and all(g.isfinite().all() for g in grads)
try:
    run("native")
except RuntimeError as error:
    print(error)
print(genimg_fast.build_info()["cpu_library"])
print(genimg_fast.build_info()["cpu_isa"], _extension.available_cpu_isas())
print(genimg_fast.__file__)
"""
    error, reason, isas, file = run_python(program, folder=tmp_path, PYTHONPATH=str(tmp_path)).splitlines()
    assert reason.startswith("_cpu.so was not built")
    assert error == f"gaussian_kl_loss: backend 'native' was asked for but cannot serve this call: {reason}"
    assert isas == "None ()"
    assert Path(file).is_relative_to(tmp_path)


def test_a_library_from_other_sources_is_left_alone(tmp_path):
    """An update of the Python files without a rebuild: an operator is missing, and `import genimg_fast` still works."""
    shutil.copytree(PACKAGE, tmp_path / "genimg_fast", ignore=shutil.ignore_patterns("__pycache__"))
    op = tmp_path / "genimg_fast" / "ops" / "gaussian_kl_loss.py"
    op.write_text(op.read_text() + '\nregister("an_operator_of_tomorrow", _fake)\n')
    program = """
loss, *grads = run("auto")
assert loss.isfinite()
print(genimg_fast.build_info()["cpu_library"])
"""
    (reason,) = run_python(program, folder=tmp_path, PYTHONPATH=str(tmp_path)).splitlines()
    assert "has no operator an_operator_of_tomorrow: it was built from another version of the sources" in reason


def test_a_library_that_does_not_load_says_why(tmp_path):
    """As docs/troubleshooting.md shows it: an older torch, a symbol that torch lacks, half a file."""
    shutil.copytree(PACKAGE, tmp_path / "genimg_fast", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    library = tmp_path / "genimg_fast" / "_cpu.so"
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    control = tmp_path / "control.cpp"
    control.write_text("namespace at { void f(); } __attribute__((constructor)) void use() { at::f(); }")

    def reason(program: str) -> str:
        program = f'import torch; {program}; import genimg_fast; print(genimg_fast.build_info()["cpu_library"])'
        environment = os.environ | {"PYTHONPATH": str(tmp_path)}
        return output_of(sys.executable, "-c", program, cwd=tmp_path, env=environment).strip()

    assert "(no C++ compiler at install time, Windows, or GENIMG_FAST_BUILD=0)" in reason("pass")
    library.write_bytes(b"half")
    old = reason("torch.__version__ = '2.10.0+cu128'")
    assert old == "_cpu.so needs torch 2.11 or newer, and this is torch 2.10.0+cu128"
    assert old in page
    assert reason("pass") == f"_cpu.so did not load: {library}: file too short"
    output_of(os.environ.get("CXX", "g++"), "-shared", "-fPIC", control, "-o", library)
    missing = "undefined symbol: _ZN2at1fEv"
    assert reason("pass") == f"_cpu.so did not load: {library}: {missing}"
    assert missing in page
