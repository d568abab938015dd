# SPDX-License-Identifier: MIT
"""The GPU check itself, with the CPU in the GPU's place: it runs to its end, and finds what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import count

import pytest
import torch

from genimg_fast import _extension
from genimg_fast.backends import cuda
from tests.gpu_check import __main__ as gpu_check
from tests.gpu_check import cases, libraries, rows, sanitizer, subject
from tests.gpu_check.report import Report

pytestmark = pytest.mark.skipif(not _extension.status("cpu").loaded, reason="the check is of the native libraries")

OP = "gaussian_kl_loss"


def test_dry_run(tmp_path):
    command = [sys.executable, "-m", "tests.gpu_check", "--dry-run", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=libraries.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "cpu-dry-run.json").read_text())
    assert report["complete"]
    assert report["checks"].keys() == {*cases.OPS, *subject.BY_WGMMA, "models"}
    found = [check for checks in report["checks"].values() for check in checks.values()]
    assert all(check["ok"] and check["cases"] > 0 for check in found)
    assert [row["name"] for row in report["rows"]] == [row.row.name for row in rows.rows(rows.TINY)]
    assert all(row["failed"] == {} and row["best"] is not None for row in report["rows"])
    counted = [row for row in report["rows"] if any(goal["what"] == "launches" for goal in row["goals"])]
    assert len(counted) == 2
    assert all(len(row["launched"]) == g["value"] for row in counted for g in row["goals"] if g["what"] == "launches")
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
    assert capsys.readouterr().err == ("gpu-check: torch sees no GPU here; --dry-run runs every step on the CPU\n")


def replace_kernel(monkeypatch, change):
    right = torch.ops.genimg_fast.gaussian_kl_loss
    monkeypatch.setattr(torch.ops.genimg_fast, OP, lambda *arguments: change(*right(*arguments)))


def test_a_wrong_value_is_found(monkeypatch):
    replace_kernel(monkeypatch, lambda loss, *gradients: (loss * 1.0001, *gradients))
    result = subject.parity(OP, "cpu", 0, quick=True)
    assert not result["ok"]
    assert "output 0: rms error" in result["failed"][0]
    assert len(result["failed"]) <= subject.MOST_FAILURES <= result["cases"] + 10


def test_an_output_that_is_left_out_is_found(monkeypatch):
    """It is NaN, though memory that was used before would often hold the right values."""
    replace_kernel(monkeypatch, lambda loss, *gradients: (torch.empty_like(loss) + 0 * loss, *gradients))
    result = subject.parity(OP, "cpu", 0, quick=True)
    assert result["failures"] >= result["cases"] - 2  # but the control, and where there are no values


def test_a_kernel_that_varies_is_found(monkeypatch):
    runs = count()
    replace_kernel(monkeypatch, lambda loss, *gradients: (loss + 1e-6 * next(runs), *gradients))
    result = subject.determinism(OP, "cpu", 0, quick=True)
    assert not result["ok"]
    assert "output 0 differs by up to" in result["failed"][0]


def test_what_needs_a_fresh_plan_in_each_call_is_found(monkeypatch):
    """A graph that keeps the values it was captured with."""
    monkeypatch.setattr(
        subject.models, "captured", lambda function, device: (lambda results: lambda: results)(function())
    )
    result = subject.graph(OP, "cpu", 0, quick=True)
    assert not result["ok"]


def test_every_operator_of_the_ops_is_opchecked():
    native = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("genimg_fast::")}
    of_the_cpu = ("block_chain", "conv_weight_grad", "cpu_", "best_cpu", "set_cpu", "philox4x32")
    checked = {name for op in cases.OPS for name, _ in subject.operators(op, "cpu")}
    not_checked = {name for name in native - checked if not name.startswith(of_the_cpu)}
    assert not_checked == {"convolution_block_pack"}  # how large its output is only the library knows


def test_a_subject_that_dies_has_failed():
    checks = gpu_check._subject((OP,), "meta", 0, 60)[OP]
    assert not checks["process"]["ok"]
    assert "no meta kernels: there are no kernels for device type 'meta'" in checks["process"]["failed"][0]


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


def test_libraries_that_are_missing_are_built_or_told(tmp_path):
    (tmp_path / "genimg_fast").mkdir()
    (tmp_path / "genimg_fast" / "__init__.py").touch()
    (tmp_path / "genimg_fast" / "_extension.py").write_text(
        "class S: loaded, detail = False, 'none'\nstatus = lambda d: S"
    )
    (tmp_path / "setup.py").write_text("raise SystemExit('no compiler')")
    with pytest.raises(libraries.LibraryError, match=r"^the libraries do not build: no compiler$"):
        libraries.ensure("cpu", tmp_path)
    (tmp_path / "setup.py").write_text("")
    with pytest.raises(libraries.LibraryError, match=r"^the libraries were built here and do not load: none$"):
        libraries.ensure("cpu", tmp_path)
