# SPDX-License-Identifier: MIT
"""The GPU check itself, on the simulated GPU: it runs to its end, and finds what is wrong."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import gpu_ledger
from genimg_fast import _extension
from genimg_fast.backends import cuda
from genimg_fast.benchmark import worker
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
    assert report["finished"] == list(gpu_check.SECTIONS)
    assert report["checks"].keys() == {*cases.OPS, "models", subject.CANARY, *subject.BY_WGMMA}
    found = [check for checks in report["checks"].values() for check in checks.values()]
    assert all(check["ok"] and check["cases"] > 0 for check in found)
    by_wgmma = [rows.by_wgmma(row) for row in rows.of_generators(rows.TINY)]
    assert [row["name"] for row in report["rows"]] == [row.row.name for row in rows.rows(rows.TINY) + by_wgmma]
    assert all(row["failed"] == {} and row["best"] is not None for row in report["rows"])
    assert [name for row in report["rows"] for name in row["not_measured"]] == [
        "launches",
        "launches",
    ]  # no profiler there
    assert report["wgmma"]
    tiles = {"": {n for n, (wgmma, _) in cuda.TILES.items() if not wgmma}}
    tiles[" by wgmma"] = cuda.TILES.keys() - tiles[""]
    for how, timed in (("", {"ours", "channels_last"}), (" by wgmma", {"ours_by_wgmma"})):
        assert {kernel["name"].split(", ")[1] for kernel in report["kernels" + how]} == {"forward", "data gradient"}
        assert len(report["kernels" + how]) == 4
        assert all(kernel["milliseconds"].keys() == timed for kernel in report["kernels" + how])
        assert len(report["tiles" + how]) == 4
        assert all(t["milliseconds"].keys() == tiles[how] and not t["failed"] for t in report["tiles" + how])
    assert all("prebuilt" in library for library in report["libraries"].values())


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        return
    assert gpu_check.main([]) == 2
    assert capsys.readouterr().err == ("gpu-check: torch sees no GPU here; --dry-run simulates one\n")


def test_a_subject_that_dies_has_failed():
    if torch.cuda.is_available():
        return
    before = {"parity": {"ok": True}, "graph": {"ok": None, "running": "case 7"}}
    checks = gpu_check._subject(OP, 0, time.monotonic() + 60, before)
    assert not checks["process"]["ok"]
    (told,) = checks.pop("process")["failed"]
    assert told.startswith("graph, case 7: ")
    assert "no cuda kernels: " in told or "Found no NVIDIA driver" in told
    assert checks == before


def test_a_subject_that_is_late_has_failed_and_after_the_end_none_begins():
    checks = gpu_check._subject(OP, 0, time.monotonic() + 0.1, {"parity": {"ok": True}})
    assert checks["process"]["failed"] == ["no end within 0 s"]
    assert checks["parity"] == {"ok": True}
    assert gpu_check._subject(OP, 0, time.monotonic(), {}) == {}


def test_a_subject_is_finished_when_its_process_came_to_its_end(tmp_path, monkeypatch):
    begun = {"a": {"parity": {"ok": True}}, "b": {"parity": {"ok": True}, "process": {"ok": False}}}
    report = Report(tmp_path / "gpu.json", time.monotonic() + 100, {"seed": 0, "checks": begun})
    run, failures = [], {"failures": 0, "cases": 1, "failed": []}

    def fake(subject, seed, deadline, before, quick):
        run.append((subject, before))
        return {} if subject == "c" else {"parity": failures, **({"process": failures} if subject == "d" else {})}

    monkeypatch.setattr(gpu_check, "_subject", fake)
    assert gpu_check._run_subjects(report, ["a", "b"], 10, dry=True)
    assert run == [("b", {"parity": {"ok": True}, "process": {"ok": False}})]
    for subject_name in ("c", "d"):
        assert not gpu_check._run_subjects(report, [subject_name], 10, dry=True)
    assert json.loads(report.path.read_text())["checks"].keys() == {"a", "b", "d"}


@pytest.fixture
def settings(monkeypatch):
    """Restores what `run` sets."""
    monkeypatch.setenv("GENIMG_FAST_WGMMA", "1")
    monkeypatch.setattr(worker, "ANSWER_SECONDS", worker.ANSWER_SECONDS)


def fake_sections(monkeypatch, report, **finishes):
    """Runs sections that only say whether they finish; returns which ran."""
    ran = []
    sections = {name: lambda *_, name=name: ran.append(name) or finishes.get(name, True) for name in gpu_check.SECTIONS}
    monkeypatch.setattr(gpu_check, "SECTIONS", sections)
    gpu_check.run(report, True, list(sections))
    return ran


@pytest.mark.usefixtures("settings")
def test_what_is_not_finished_is_gone_on_with_and_wgmma_comes_last(tmp_path, monkeypatch):
    report = Report(tmp_path / "gpu.json", time.monotonic() + 1000, {"finished": [], "failed": []})
    assert fake_sections(monkeypatch, report, rows=False) == ["checks", "sanitizer", "rows", "kernels", "tiles"]
    assert not report.content["complete"]
    assert report.content["finished"] == ["checks", "sanitizer", "kernels", "tiles"]
    assert fake_sections(monkeypatch, report) == ["rows", "wgmma"]
    assert report.content["complete"]
    assert (
        fake_sections(monkeypatch, Report(tmp_path / "late.json", time.monotonic(), {"finished": [], "failed": []}))
        == []
    )


@pytest.mark.usefixtures("settings")
def test_a_section_that_fails_takes_no_other_down(tmp_path, monkeypatch, capsys):
    report = Report(
        tmp_path / "gpu.json", time.monotonic() + 1000, {"finished": [], "failed": [], "checks": {}, "dry_run": False}
    )
    fails = lambda *_: 1 / 0  # noqa: E731
    monkeypatch.setattr(gpu_check, "SECTIONS", {"rows": fails, "kernels": lambda *_: True})
    gpu_check.run(report, True, ["rows", "kernels"])
    assert report.content["finished"] == ["kernels"]
    assert report.content["failed"] == ["rows: ZeroDivisionError: division by zero"]
    assert gpu_check.conclude(report) == 1
    assert "not finished: rows; to go on: --continue" in capsys.readouterr().out


def test_a_report_of_the_same_sources_and_gpu_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    path = tmp_path / "gpu.json"
    rows = [{"name": "whole", "cut_off": False}, {"name": "half", "cut_off": True}]
    begun = {
        "source_hash": gpu_ledger.source_hash(),
        "device": "A GPU",
        "seed": 7,
        "finished": ["checks"],
        "rows": rows,
    }
    path.write_text(json.dumps(begun | {"seconds": 500, "failed": ["rows"], "dry_run": True}))
    report = gpu_check._new_report(False, tmp_path / "new", time.monotonic() + 100, {}, gpu_check._read(path))
    written = json.loads((tmp_path / "new" / "a-gpu.json").read_text())
    assert written["seed"] == 7
    assert written["finished"] == ["checks"]
    assert written["rows"] == rows[:1]
    assert written["seconds"] >= 500
    assert report.seconds_left > 90
    assert not written["dry_run"]
    assert written["failed"] == []
    for wrong in ({"source_hash": "another"}, {"device": "Another GPU"}):
        path.write_text(json.dumps(begun | wrong))
        with pytest.raises(libraries.LibraryError, match="is of other sources or another GPU"):
            gpu_check._read(path)
    with pytest.raises(libraries.LibraryError, match="is no report"):
        gpu_check._read(tmp_path / "none.json")


def test_the_checks_of_a_subject_are_kept_as_they_are_made(tmp_path, monkeypatch):
    out, made = tmp_path / "checks.json", []

    def check(name, found):
        made.append(name)
        with found.case("first"):
            raise AssertionError("wrong")
        with found.case("second"):
            if made.count("graph") == 1 and name == "graph":
                raise KeyboardInterrupt

    for name in ("parity", "opcheck", "graph", "determinism"):
        monkeypatch.setattr(subject, name, lambda found, *_, name=name, **__: check(name, found))
    with pytest.raises(KeyboardInterrupt):
        subject.check(OP, 0, out)
    checks = json.loads(out.read_text())
    assert list(checks) == ["parity", "opcheck", "graph"]
    whole = {"ok": False, "cases": 2, "failures": 1, "failed": ["first: wrong"]}
    assert checks["opcheck"] == whole
    assert checks["graph"] == whole | {"cases": 1, "running": "second"}
    subject.check(OP, 0, out)
    assert made == ["parity", "opcheck", "graph", "graph", "determinism"]
    assert json.loads(out.read_text()) == dict.fromkeys(("parity", "opcheck", "graph", "determinism"), whole)


def test_tiles_are_forced_where_they_serve(monkeypatch):
    forced = []
    record = lambda configuration, seed, mode: forced.append((mode.name, cuda._tile)) or {"output": 1.0}  # noqa: E731
    monkeypatch.setattr(subject, "_convolution", record)
    for mode in subject.modes("conv2d_bn_act"):
        subject._convolutions(subject.Findings(), "conv2d_bn_act", 0, mode, quick=False)
    assert {tile for mode, tile in forced if mode == "float32"} == {-1}
    assert {tile for mode, tile in forced if mode == "tf32"} == {-1, 0, 1, 2, 3}
    forced.clear()
    monkeypatch.setattr(cuda, "allow_wgmma", True)
    subject.canary(subject.Findings(), 0)
    assert forced == [("bfloat16", tile) for by_wgmma, tile in cuda.TILES.values() if by_wgmma]


def test_few_channels_are_in_every_pass():
    names = [case.name for case in cases.representatives("batch_norm_act", 2, 4)]
    assert [name for name in names if name.endswith("relu, training")][-3:] == [
        "(16, 3, 72, 72) relu, training", "(8400, 20) relu, training", "(3, 1, 297, 297) relu, training",
    ]  # fmt: skip


CLEAN = dict.fromkeys(sanitizer._RUNS, (0, "ops ran")) | {"control": (86, "Invalid __global__ read of size 16")}
LATE = (None, "")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"control": (0, "")}, "the wrong access was NOT found"),
        ({"control": (86, "Program hit cudaErrorNoDevice")}, "the wrong access was NOT found"),
        ({"memcheck": (86, "Invalid __global__ write of size 4")}, "exit code 86: Invalid __global__ write"),
        ({"racecheck": (0, "Target application returned nothing")}, "exit code 0"),
        ({"memcheck": (None, "Invalid __global__ write of size 4")}, "exit code None: Invalid __global__ write"),
        ({"racecheck": (None, "Error: Race reported between")}, "exit code None: Error: Race"),
    ],
)
def test_the_sanitizer_must_find_the_control_and_nothing_else(change, told):
    assert sanitizer.judge(CLEAN, {})["ok"]
    result = sanitizer.judge(CLEAN | change | {"memcheck of wgmma": LATE}, {})
    assert result["ok"] is False
    assert told in result[next(iter(change))]


def test_a_sanitizer_that_is_late_has_found_nothing_and_runs_again(monkeypatch):
    late = sanitizer.judge(CLEAN | {"racecheck": LATE}, {})
    assert late == {"ok": None, **dict.fromkeys(sanitizer._RUNS, "ok"), "racecheck": "out of time"}
    ran = []
    monkeypatch.setattr(sanitizer, "_find", lambda: "tool")
    monkeypatch.setattr(sanitizer, "_run", lambda tool, kind, what, seconds: ran.append(kind) or (0, "ops ran"))
    assert sanitizer.check(sanitizer.OPS, 1, late) == {"ok": True, **dict.fromkeys(sanitizer._RUNS, "ok")}
    assert ran == ["racecheck"]


def test_what_is_out_of_time_ends_with_all_that_it_started():
    read, write = os.pipe()
    sleeps = "import subprocess; subprocess.run(['sleep', '1000'], close_fds=False)"
    code, _ = libraries.run_to_end([sys.executable, "-c", sleeps], 3, pass_fds=[write])
    os.close(write)
    assert code is None
    assert select.select([read], [], [], 20)[0], "something still holds the other end"
    os.close(read)
    assert libraries.run_to_end([sys.executable, "-c", "import sys; sys.exit('no')"], 60) == (1, "no\n")


def test_without_the_sanitizer_it_says_so(monkeypatch):
    monkeypatch.setattr(sanitizer, "_find", lambda: None)
    assert sanitizer.check(sanitizer.OPS, 1, {})["ok"] is None


def test_the_report_is_whole_after_every_step(tmp_path):
    report = Report(tmp_path / "new" / "gpu.json", time.monotonic() + 100, {"device": "A GPU", "checks": {}})
    for step in range(3):
        report.add("rows", step) if step else report.add("rows", [])
        written = json.loads(report.path.read_text())
        assert written["device"] == "A GPU"
        assert written["rows"] == list(range(1, step + 1))
    assert 99 < report.seconds_left <= 100


def test_a_library_of_other_sources_is_not_used(tmp_path):
    library = tmp_path / "_cuda.so"
    found = {"_cpu": (True, ""), "_cuda": (True, str(library))}
    library.write_bytes(b"ELF" + bytes.fromhex(gpu_ledger.source_hash()) + b"...")
    assert libraries._why_not_usable(found, libraries.ROOT) == ""
    (tmp_path / "csrc" / "cuda").mkdir(parents=True)
    (tmp_path / "csrc" / "cuda" / "new.cu").touch()
    assert libraries._why_not_usable(found, tmp_path) == f"{library} was built from other sources"


def test_libraries_that_are_missing_are_built_or_told(tmp_path, monkeypatch):
    (tmp_path / "genimg_fast").mkdir()
    (tmp_path / "genimg_fast" / "__init__.py").touch()
    (tmp_path / "genimg_fast" / "_extension.py").write_text("status = lambda device: (False, 'none')")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    monkeypatch.setattr(libraries, "_architecture", lambda: "9.0a")
    (tmp_path / "setup.py").write_text("import os; raise SystemExit('not for ' + os.environ['TORCH_CUDA_ARCH_LIST'])")
    with pytest.raises(libraries.LibraryError, match=r"^the libraries do not build: not for 9.0a$"):
        libraries.ensure(tmp_path)
    (tmp_path / "setup.py").write_text("")
    with pytest.raises(libraries.LibraryError, match=r"^the libraries were built here and are of no use: none$"):
        libraries.ensure(tmp_path)
    monkeypatch.setattr(libraries, "_BUILD_SECONDS", 0.2)
    (tmp_path / "setup.py").write_text("import time; time.sleep(1000)")
    with pytest.raises(libraries.LibraryError, match=r"^the libraries do not build within 0.2 s$"):
        libraries.ensure(tmp_path)
    monkeypatch.setattr(libraries, "_LOAD_SECONDS", 0.01)
    with pytest.raises(libraries.LibraryError, match=r"^the libraries do not load within 0.01 s$"):
        libraries.ensure(tmp_path)
