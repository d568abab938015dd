# SPDX-License-Identifier: MIT
from __future__ import annotations

import copy
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import gpu_ledger, readme_table

TIMES = {"low": 0.9, "median": 1.0, "high": 1.25}
REPORT = {
    "kind": "gpu-check", "dry_run": False, "complete": True, "device": "NVIDIA A1", "cuda": "13.0", "source_hash": "abc",
    "machine": {"date": "2030-01-01", "commit": "c0ffee", "versions": {"torch": "2.13.0"}},
    "checks": {"elbo_loss": {"parity": {"ok": True}, "graph": {"ok": True}}},
    "sanitizer": {"ok": True},
    "limits": {"flops_per_second": 8e14, "bytes_per_second": 4e12},
    "accuracy": {"factor": 1.25, "mode": "tf32"},
    "rows": [
        {
            "name": "generator", "best": "max_autotune", "ratio": {"low": 1.5, "median": 1.6, "high": 1.7}, "gate": 1.5,
            "gate_met": True, "goals": [{"what": "images/s", "goal": 2.4e6, "value": 2e6, "met": False}],
            "runtimes": {"ours": {"milliseconds": TIMES}, "max_autotune": {"milliseconds": TIMES}},
        },
        {"name": "broken", "best": None, "goals": [], "runtimes": {}},
    ],
}  # fmt: skip


def ledger_line(**changes):
    section = gpu_ledger.section([copy.deepcopy(REPORT) | changes], "abc")
    return section.splitlines()[2]


def test_a_report_of_these_sources_is_verified():
    assert ledger_line() == ("| NVIDIA A1 | 2030-01-01, commit c0ffee | 2.13.0, 13.0 | 3 passed, 0 failed | verified |")


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"source_hash": "other"}, "*not verified since*: the CUDA sources have changed"),
        ({"complete": False}, "**cut off**"),
        ({"sanitizer": {"ok": False}}, "**compute-sanitizer**"),
        ({"checks": {"elbo_loss": {"parity": {"ok": False}}}}, "**elbo_loss: parity**"),
    ],
)
def test_what_is_not_verified_is_told(changes, state):
    assert ledger_line(**changes).endswith(f" failed | {state} |")


def test_a_check_that_did_not_run_is_not_counted():
    assert "| 2 passed, 0 failed |" in ledger_line(sanitizer={"ok": None})


def test_without_a_report_it_says_so():
    assert "not yet run on silicon" in gpu_ledger.section([], "abc")
    assert not gpu_ledger.is_gpu_report(REPORT | {"dry_run": True})


def test_the_table_holds_gates_and_goals():
    lines = gpu_ledger.table(REPORT).splitlines()
    assert lines[0] == "NVIDIA A1: copies 4.00 TB/s, multiplies bf16 matrices at 800 TFLOP/s."
    assert "| **1.60** (1.50 to 1.70) | 1.5 met | images/s 2e+06 (goal 2.4e+06 not met) |" in lines[4]
    assert "at most **1.25** times cuDNN's (tf32) | 2 met | |" in lines[-1]
    assert len({line.count("|") for line in lines[2:]}) == 1  # every row has every column


def test_the_hash_is_that_of_the_cuda_sources(tmp_path):
    shutil.copytree(gpu_ledger.ROOT / "csrc", tmp_path / "csrc")
    before = gpu_ledger.source_hash(tmp_path)
    assert before == gpu_ledger.source_hash()
    (tmp_path / "csrc" / "cpu" / "isa.cpp").write_text("")
    assert gpu_ledger.source_hash(tmp_path) == before
    for changed in (
        "csrc/cuda/ptx.cuh",
        "csrc/common/philox.h",
        "csrc/ops/elbo_loss_cuda.cpp",
        "csrc/ops/tensor_cuda.h",
        "csrc/ops/convolution.h",
    ):
        (tmp_path / changed).write_text((tmp_path / changed).read_text() + "\n")
        assert gpu_ledger.source_hash(tmp_path) != before, changed
        before = gpu_ledger.source_hash(tmp_path)


def test_the_hash_is_of_all_that_the_cuda_library_includes():
    csrc = gpu_ledger.ROOT / "csrc"
    compiled, found = [*csrc.glob("cuda/*.cu"), *csrc.glob("ops/*_cuda.cpp")], set()
    while compiled:
        file = compiled.pop()
        found.add(file)
        included = {csrc / name for name in re.findall(r'#include "([\w./]+)"', file.read_text())}
        compiled += [header for header in included - found if header.exists()]
    assert found <= {path for pattern in gpu_ledger._SOURCES for path in gpu_ledger.ROOT.glob(pattern)}


def test_the_readme_tells_what_the_reports_say():
    readme = Path(gpu_ledger.ROOT / "README.md").read_text()
    reports = [r for r in readme_table.load_reports().values() if gpu_ledger.is_gpu_report(r)]
    section = gpu_ledger.section(reports, gpu_ledger.source_hash())
    assert readme_table.rewrite(readme, readme_table.GPU, [section]) == readme, "run python -m benchmarks.readme_table"
