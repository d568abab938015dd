# SPDX-License-Identifier: MIT
from __future__ import annotations

import json

import pytest
from PIL import Image

from benchmarks import compare, readme_table
from genimg_fast import _extension, cli
from genimg_fast.benchmark import accuracy, kernels, suite
from genimg_fast.benchmark.convolution import Convolution
from genimg_fast.benchmark.functions import GaussianKLLoss
from genimg_fast.benchmark.models import BlockInference, GeneratorTraining
from genimg_fast.benchmark.runtimes import RUNTIMES
from tests.benchmark import _workloads

KL = GaussianKLLoss((8, 16))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(exit code, folder, output) of a suite with one of everything, all of it tiny."""
    out = tmp_path_factory.mktemp("bench") / "cpu"
    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as not_installed:
        rows = (
            suite.Row("small", KL, ("eager", "openvino"), suite.Target(0.001, 1000.0)),
            suite.Row("one fails", _workloads.FailsIn((8, 16), "eager"), ("eager",)),
            suite.Row("ours is wrong", _workloads.WrongOutput((8, 16)), ("eager",)),
        )
        patch.setattr(suite, "CPU_ROWS", rows)
        patch.setattr(suite, "SWEEPS", {"size sweep: batch": {n: BlockInference(n, 8, 4, 4) for n in (1, 2)}})
        patch.setattr(suite, "CPU_PARTS", (suite.SAVED_BYTES, suite.ACCURACY, suite.KERNELS, "size sweep: batch"))
        patch.setattr(suite, "SAVED_BYTES_WORKLOAD", GeneratorTraining(2, image_size=32, width=4))
        patch.setattr(accuracy, "SHAPES", [(True, 8, 4, 4, 4, 2, 1, 0)])
        convolution = Convolution("forward", True, 2, 8, 4, 4)
        patch.setattr(
            kernels, "KERNELS", {str(convolution): convolution, "kl": KL, "wrong": _workloads.WrongOutput((8, 16))}
        )
        not_installed.setattr(RUNTIMES["openvino"], "installed", classmethod(lambda cls: False))
        lines = []
        patch.setattr("builtins.print", lambda *text, **_: lines.append(" ".join(map(str, text))))
        code = cli.main(["bench", "--suite", "cpu", "--seconds", "0", "--threads", "1", "--out", str(out)])
    return code, out, "\n".join(lines)


@pytest.fixture(scope="module")
def report(run):
    return json.loads((run[1] / "bench.json").read_text())


def test_a_wrong_output_fails_the_command_and_is_never_timed(run, report):
    assert run[0] == 1
    (row,) = [row for row in report["rows"] if row["name"] == "ours is wrong"]
    assert row["failed"]["ours"].startswith("wrong output: output differs from float64")
    assert row["runtimes"] == {}
    assert row["best"] is None
    assert report["kernels"]["failed"]["wrong"].startswith("wrong output")
    assert [k["name"] for k in report["kernels"]["kernels"]] == ["conv_transpose2d 8-4 k4s2p1 @4, forward", "kl"]


def test_the_report_says_where_it_comes_from(report):
    assert report["schema"] == suite.SCHEMA
    assert report["machine"].keys() >= {"cpu", "cores", "threads", "isa", "versions", "commit", "date"}
    assert report["machine"]["threads"] == report["threads"] == 1
    assert "torch" in report["machine"]["versions"]


def test_a_row_holds_every_runtime_and_the_verdict(report):
    row = report["rows"][0]
    assert row["failed"] == {"openvino": "not installed"}
    assert row["runtimes"].keys() == {"ours", "eager"}
    for runtime in row["runtimes"].values():
        assert (
            0 < runtime["milliseconds"]["low"] <= runtime["milliseconds"]["median"] <= runtime["milliseconds"]["high"]
        )
        assert runtime["rounds"] >= 5
        assert runtime["error_over_tolerance"] <= 1
        assert runtime["idle_cpu_milliseconds"] < 50
    assert row["best"] == "eager"
    assert row["ratio"] == row["runtimes"]["eager"]["times_as_long_as_ours"]
    assert (row["gate"], row["gate_met"], row["goal"], row["goal_met"]) == (0.001, True, 1000.0, False)


def test_an_alternative_that_fails_is_told_and_the_rest_goes_on(report):
    row = report["rows"][1]
    assert row["failed"] == {"eager": "RuntimeError: no such kernel"}
    assert row["runtimes"].keys() == {"ours"}


def test_the_other_parts(report):
    assert report["saved_bytes"]["eager"] > 0
    assert report["saved_bytes"]["ratio"] == report["saved_bytes"]["ours"] / report["saved_bytes"]["eager"]
    assert len(report["accuracy"]["errors"]) == 3  # directions
    assert report["accuracy"]["plain"]["factor"] > 0
    assert all(k["share"] > 0 for k in report["kernels"]["kernels"])
    assert [p["size"] for p in report["sweeps"]["batch"]["points"]] == [1, 2]


def test_progress_is_told(run):
    assert "[1/3] small: eager; OpenVINO" in run[2]
    assert "times as fast" in run[2]
    assert "bench.json" in run[2]


def test_charts_are_drawn(run):
    for name in readme_table.ALT_TEXTS:
        picture = Image.open(run[1] / name).convert("L")
        assert picture.size[0] > 400
        assert picture.getextrema() == (0, 255)


def test_the_report_feeds_the_readme_and_the_regression_check(run, report, capsys):
    text = readme_table.table(report)
    assert "| small | " in text
    assert "0.001 met, 1000 not met" in text
    path = str(run[1] / "bench.json")
    assert compare.main([path, path]) == 0
    assert "no ratio is more than 10% worse" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--match", "nothing"], "--match 'nothing': nothing in the quick suite is called so"),
        (["--suite", "cpu", "--match", "nothing"], "--match 'nothing': nothing in the cpu suite is called so"),
    ],
)
def test_what_cannot_be_measured_is_one_line(arguments, message, capsys):
    assert cli.main(["bench", "--device", "cpu", *arguments]) == 2
    assert capsys.readouterr().err == f"genimg-fast bench: {message}\n"


def test_bench_without_kernels_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(_extension, "_CPU", _extension.LibraryStatus(False, "_cpu.so was not built"))
    assert cli.main(["bench", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "genimg-fast bench: nothing to compare: no cpu kernels (_cpu.so was not built)\n"


def test_a_cpu_without_the_isa_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(_extension, "available_cpu_isas", lambda: ("portable",))
    assert cli.main(["bench", "--device", "cpu", "--isa", "avx2"]) == 2
    assert capsys.readouterr().err == "genimg-fast bench: --isa avx2: this CPU lacks it\n"
