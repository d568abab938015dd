# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch

from genimg_fast import _extension, _parity, cli, use_backend
from genimg_fast.cli import doctor


def rows(printed):
    """op -> its line of the table on the CPU."""
    table = printed.partition("ops on cpu\n")[2].strip().splitlines()[2:]
    return {line.split()[0]: line for line in table if line.split() and line.split()[0] in _parity.CASES}


def test_a_healthy_machine(capsys):
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert torch.__version__ in printed
    assert _extension.cpu_isa() in printed
    assert rows(printed).keys() == _parity.CASES.keys()
    assert all(" native " in row and " OK " in row for row in rows(printed).values())


def test_a_wrong_kernel_is_told_and_exits_with_1(monkeypatch, capsys):
    right = _parity.check
    wrong = {"elbo_loss": _parity.Parity(0.5, False)}
    monkeypatch.setattr(_parity, "check", lambda op, device: wrong.get(op) or right(op, device))
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert " FAIL " in rows(printed)["elbo_loss"]
    assert " OK " in rows(printed)["bce_loss"]
    assert "GENIMG_FAST_BACKEND=reference" in printed


def test_a_crashing_kernel_is_told(monkeypatch, capsys):
    def crash(op, device):
        raise RuntimeError("no kernel image\nfor this device")

    monkeypatch.setattr(_parity, "check", crash)
    assert cli.main(["doctor"]) == 1
    assert rows(capsys.readouterr().out)["bce_loss"].endswith("no kernel image for this device")


def test_the_reference_gives_its_reason(capsys):
    with use_backend("reference"):
        assert cli.main(["doctor"]) == 0
    row = rows(capsys.readouterr().out)["bce_loss"]
    assert " reference " in row
    assert row.endswith("the backend is set to 'reference'")


def test_without_a_library_nothing_is_checked(monkeypatch, capsys):
    for name in ("_CPU", "_CUDA"):
        monkeypatch.setattr(_extension, name, _extension.LibraryStatus(False, "_cpu.so was not built"))
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert all(row.endswith("_cpu.so was not built") for row in rows(printed).values())
    assert "none: no CPU kernels" in printed


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\0-arch sm_90a -m 64 \0 -arch sm_100 -m 64 \0 -arch sm_90a\0 -arch sm_86\0", "sm_86, sm_90a, sm_100"),
        (b"nothing", "unknown"),
        (None, "nothing: _cuda.so was not built"),
    ],
)
def test_cuda_architectures_are_read_from_the_library(monkeypatch, tmp_path, content, expected):
    if content is not None:
        (tmp_path / "_cuda.so").write_bytes(content)
    monkeypatch.setattr(_extension, "__file__", str(tmp_path / "_extension.py"))
    assert doctor._cuda_architectures() == expected
