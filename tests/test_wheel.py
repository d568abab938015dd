# SPDX-License-Identifier: MIT
"""The wheel check itself: that it finds what is wrong, and that the wheel of today passes."""

from __future__ import annotations

import os
import subprocess
import zipfile

import pytest

from tests import wheel_check

METADATA = "Requires-Python: >=3.10\nRequires-Dist: torch>=2.11\n"


def write_wheel(folder, files, tag="cp310-abi3-linux_x86_64"):
    wheel = folder / f"genimg_fast-0.1.0-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as opened:
        for name, content in {"genimg_fast-0.1.0.dist-info/METADATA": METADATA, **files}.items():
            opened.writestr(name, content)
    return wheel


def compiled(folder, source):
    (folder / "library.cpp").write_text(source)
    command = [os.environ.get("CXX", "g++"), "-shared", "-fPIC", "-o", folder / "library.so", folder / "library.cpp"]
    subprocess.run(command, check=True)
    return (folder / "library.so").read_bytes()


@pytest.fixture
def good(tmp_path):
    return {"genimg_fast/_cpu.so": compiled(tmp_path, '#include <cstdio>\nvoid hello() { std::puts("hello"); }')}


def test_a_good_wheel_has_no_faults(tmp_path, good):
    assert wheel_check.faults_of_wheel(write_wheel(tmp_path, good), tmp_path / "unpacked") == []


def test_every_fault_is_found(tmp_path, good):
    bad = {
        "genimg_fast/_cpu.so": compiled(tmp_path, "namespace at { void f(); } void use() { at::f(); }"),
        "genimg_fast/_cuda.so": good["genimg_fast/_cpu.so"],
        "genimg_fast/large": os.urandom(5_000_000),
        "genimg_fast-0.1.0.dist-info/METADATA": "Requires-Python: >=3.10\n",
    }
    wheel = write_wheel(tmp_path, bad, tag="cp311-cp311-linux_x86_64")
    faults = "\n".join(wheel_check.faults_of_wheel(wheel, tmp_path / "unpacked"))
    for fault in (
        "the tag is cp311-cp311-linux_x86_64",
        "bytes; a wheel without CUDA has fewer than 5000000",
        "no 'Requires-Dist: torch>=2.11' in METADATA",
        "the libraries are ['genimg_fast/_cpu.so', 'genimg_fast/_cuda.so']",
        "genimg_fast/_cpu.so imports _ZN2at1fEv",
    ):
        assert fault in faults


@pytest.mark.slow
def test_the_wheel_of_today(capsys):
    """Builds it (minutes) and runs it under the Python of the tests; `make wheel-check` takes others too."""
    assert wheel_check.main([]) == 0, capsys.readouterr().out
