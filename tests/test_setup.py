# SPDX-License-Identifier: MIT
"""What the build says where it cannot go on; docs/troubleshooting.md shows the same words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# In place of torch, whose import takes seconds.
TORCH = """
import sys, types
torch, torch.utils, extension = (types.ModuleType(n) for n in ("torch", "torch.utils", "torch.utils.cpp_extension"))
torch.__version__, torch.version, torch.utils.cpp_extension = {version!r}, types.SimpleNamespace(cuda={cuda!r}), extension
extension.BuildExtension = types.SimpleNamespace(with_options=lambda **options: None)
extension.include_paths = extension.library_paths = list
sys.modules.update({{module.__name__: module for module in (torch, torch.utils, extension)}})
"""
# Everything up to the compiler; where nothing is wrong, it prints the name.
SETUP = "import sys, runpy; sys.argv = ['setup.py', '--name']; runpy.run_path('setup.py', run_name='__main__')"


def setup(version: str | None = "2.11.0", cuda: str | None = None, prelude: str = "", **environment: str):
    torch = TORCH.format(version=version, cuda=cuda) if version else "import sys; sys.modules['torch'] = None"
    unset = ("GENIMG_FAST", "CUDA", "TORCH")
    env = {name: value for name, value in os.environ.items() if not name.startswith(unset)} | environment
    command = [sys.executable, "-c", f"{torch}\n{prelude}\n{SETUP}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def toolkit(folder: Path, version: str) -> str:
    """A folder that looks like the CUDA toolkit of `version`."""
    nvcc = f"#!/bin/sh\necho 'release {version}, V{version}.1'\n"
    for name, text in (("bin/nvcc", nvcc), ("include/cuda_runtime.h", "")):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return str(folder)


def assert_documented(text: str) -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert text.strip()
    for line in text.strip().splitlines():
        assert line.strip() in page, f"docs/troubleshooting.md lacks: {line}"


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "this build cannot see one"), ("2.10.0+cpu", "2.11 or newer, and this is torch 2.10.")],
)
def test_a_torch_that_is_missing_or_old(version, message):
    done = setup(version, GENIMG_FAST_CUDA="0")
    assert done.returncode == 1
    assert message in done.stderr
    assert_documented(done.stderr)


def test_a_toolkit_of_another_major_version_than_torch(tmp_path):
    home = toolkit(tmp_path / "cuda", "12.6")
    done = setup(cuda="13.0", CUDA_HOME=home, PATH="/usr/bin:/bin")
    assert done.returncode == 1
    assert "is version 12.6, but this torch was built with CUDA 13.0" in done.stderr
    assert_documented(done.stderr.replace(home, "/usr/local/cuda"))


@pytest.mark.parametrize("cuda", ["12.8", None])
def test_a_toolkit_of_another_minor_version_or_a_torch_without_cuda(tmp_path, cuda):
    done = setup(cuda=cuda, CUDA_HOME=toolkit(tmp_path / "cuda", "12.6"), PATH="/usr/bin:/bin")
    assert (done.returncode, done.stdout) == (0, "genimg-fast\n"), done.stderr


def test_ninja_is_told_which_headers_a_kernel_includes(tmp_path):
    """By BuildExtension, which asks for torch's CUDA version: else a library would be stale, with the build id of a new one."""
    told = "import atexit; atexit.register(lambda: print(torch.version.cuda))"
    done = setup(cuda=None, prelude=told, CUDA_HOME=toolkit(tmp_path / "cuda", "12.6"), PATH="/usr/bin:/bin")
    assert done.stdout == "genimg-fast\n12.6\n", done.stderr
    for file in ROOT.glob("build/temp*/build.ninja"):  # of the last build here, if any
        _, rule, rest = file.read_text().partition("rule cuda_compile\n")
        assert not rule or "depfile = $out.d" in rest.partition("\n\n")[0]


def test_a_toolkit_that_is_missing_where_it_is_insisted_on():
    nowhere = "import pathlib; pathlib.Path.exists = lambda self: False"
    done = setup(prelude=nowhere, GENIMG_FAST_CUDA="1", PATH="/usr/bin:/bin")
    assert done.returncode == 1
    assert_documented(done.stderr)


def test_without_a_compiler_it_installs_all_the_same(tmp_path):
    done = setup(PATH=str(tmp_path), CXX="")
    assert (done.returncode, done.stdout) == (0, "genimg-fast\n")
    assert_documented(done.stderr)


def test_a_compiler_that_does_not_run_makes_way_for_clang(tmp_path):
    for name, status in (("c++", 1), ("clang++", 0)):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / name).chmod(0o755)
    told = "import atexit, os; atexit.register(lambda: print(os.environ['CXX']))"
    done = setup(prelude=told, PATH=str(tmp_path), CXX="", GENIMG_FAST_CUDA="0")
    assert done.stdout == f"genimg-fast\n{tmp_path / 'clang++'}\n", done.stderr


def test_on_windows_it_installs_all_the_same():
    done = setup(prelude="sys.platform = 'win32'")
    assert (done.returncode, done.stdout) == (0, "genimg-fast\n")
    told, *of_setuptools = done.stderr.splitlines()
    assert "no native library on Windows" in told
    assert not any("genimg_fast" in line for line in of_setuptools)  # nothing more is built
    assert_documented(told)
