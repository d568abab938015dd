# SPDX-License-Identifier: MIT
"""The GPU check itself, on the simulated GPU: it runs to its end, and finds what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from genimg_fast import _extension
from genimg_fast.backends import cuda
from tests.gpu_check import __main__ as gpu_check
from tests.gpu_check import cases, libraries, rows, sanitizer, subject
from tests.gpu_check.report import Report

pytestmark = pytest.mark.skipif(not _extension.status("cpu").loaded, reason="the check is of the native libraries")

OP = "gaussian_kl_loss"


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_dry_run(tmp_path):
    command = [sys.executable, "-m", "tests.gpu_check", "--dry-run", "--seconds", "3000", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=libraries.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "simulated-gpu.json").read_text())
    assert report["complete"]
    assert report["checks"].keys() == {*cases.OPS, *subject.BY_WGMMA, "models"}
    found = [check for checks in report["checks"].values() for check in checks.values()]
    assert all(check["ok"] and check["cases"] > 0 for check in found)
    assert [row["name"] for row in report["rows"]] == [row.row.name for row in rows.rows(rows.TINY)]
    assert all(row["failed"] == {} and row["best"] is not None for row in report["rows"])
    assert [name for row in report["rows"] for name in row["not_measured"]] == [
        "launches",
        "launches",
    ]  # no profiler there
    assert len(report["kernels"]) == 6
    assert report["wgmma"]
    timed = {"ours", "channels_last", "ours_without_wgmma"}
    assert all(kernel["milliseconds"].keys() == timed for kernel in report["kernels"])
    assert all(t["milliseconds"].keys() == cuda.TILES.keys() and not t["failed"] for t in report["tiles"])
    assert len(report["tiles"]) == 2
    assert "prebuilt" in report["libraries"]["_cpu"]


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        return
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().err == ("gpu-check: torch sees no GPU here; --dry-run simulates one\n")


def test_a_subject_that_dies_has_failed():
    if torch.cuda.is_available():
        return
    checks = gpu_check._subject(OP, 0, 60)
    assert not checks["process"]["ok"]
    (told,) = checks["process"]["failed"]
    assert "no cuda kernels: " in told or "Found no NVIDIA driver" in told


CLEAN = dict.fromkeys(sanitizer._RUNS, (0, "ops ran")) | {"control": (86, "Invalid __global__ read of size 16")}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"control": (0, "")}, "the wrong access was NOT found"),
        ({"control": (86, "Program hit cudaErrorNoDevice")}, "the wrong access was NOT found"),
        ({"memcheck": (86, "Invalid __global__ write of size 4")}, "exit code 86: Invalid __global__ write"),
        ({"racecheck": (0, "Target application returned nothing")}, "exit code 0"),
        ({"memcheck": (None, "")}, "out of time"),
    ],
)
def test_the_sanitizer_must_find_the_control_and_nothing_else(change, told):
    assert sanitizer.judge(CLEAN)["ok"]
    result = sanitizer.judge(CLEAN | change)
    assert not result["ok"]
    assert told in result[next(iter(change))]


def test_without_the_sanitizer_it_says_so(monkeypatch):
    monkeypatch.setattr(sanitizer, "_find", lambda: None)
    assert sanitizer.check(1)["ok"] is None


def test_the_report_is_whole_after_every_step(tmp_path):
    report = Report(tmp_path / "new" / "gpu.json", 100, device="A GPU", checks={})
    for step in range(3):
        report.add("rows", step) if step else report.add("rows", [])
        written = json.loads(report.path.read_text())
        assert written["device"] == "A GPU"
        assert written["rows"] == list(range(1, step + 1))
    assert 99 < report.seconds_left <= 100


def test_libraries_that_are_missing_are_built_or_told(tmp_path, monkeypatch):
    (tmp_path / "genimg_fast").mkdir()
    (tmp_path / "genimg_fast" / "__init__.py").touch()
    (tmp_path / "genimg_fast" / "_extension.py").write_text("status = lambda device: (False, 'none')")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    (tmp_path / "setup.py").write_text("raise SystemExit('no compiler')")
    with pytest.raises(libraries.LibraryError, match=r"^the libraries do not build: no compiler$"):
        libraries.ensure(tmp_path)
    (tmp_path / "setup.py").write_text("")
    with pytest.raises(libraries.LibraryError, match=r"^the libraries were built here and do not load: none$"):
        libraries.ensure(tmp_path)
