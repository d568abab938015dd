# SPDX-License-Identifier: MIT
from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from genimg_fast import _extension, cli
from genimg_fast.cli import _workloads, bench

PASSES = [(w, passes) for w in _workloads.WORKLOADS for passes in w.passes]


def small(workload):
    """The workload at a batch that a test can afford."""
    return dataclasses.replace(workload, batch=2)


@pytest.mark.parametrize(("workload", "passes"), PASSES, ids=[f"{w.name}-{p}" for w, p in PASSES])
def test_backends_agree(workload, passes):
    assert bench.first_difference(small(workload), passes, "cpu") < bench.LARGEST_DIFFERENCE["cpu"]


def test_every_workload_is_timed_by_a_file_of_its_group():
    folder = Path(__file__).parents[2] / "benchmarks"
    files = {path.stem.removeprefix("bench_") for path in folder.glob("bench_*.py")}
    assert files == {w.group for w in _workloads.WORKLOADS}


def test_a_backend_that_computes_something_else_is_not_timed(monkeypatch):
    (workload,) = [w for w in _workloads.WORKLOADS if w.group == "gaussian_kl_loss"]
    prepare = _workloads.prepare

    def wrong(workload, passes, backend, device):
        prepared = prepare(workload, passes, backend, device)
        if backend != "native":
            return prepared
        return dataclasses.replace(prepared, call=lambda: [t + 1 for t in prepared.call()])

    monkeypatch.setattr(_workloads, "prepare", wrong)
    with pytest.raises(
        cli.CommandError, match="gaussian_kl_loss 4096x128, forward: native differs from the reference by"
    ):
        bench.measure(small(workload), "forward", torch.device("cpu"), seconds=0)


def test_largest_difference():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 4.0])
    assert bench.largest_difference([a, a], [a, b]) == 0.5
    assert bench.largest_difference([a, torch.tensor([float("nan")])], [a, torch.tensor([1.0])]) == float("inf")


def test_rates_count_what_must_move(monkeypatch):
    (workload,) = [w for w in _workloads.WORKLOADS if w.group == "gaussian_kl_loss"]
    forward, both = (_workloads.prepare(small(workload), p, "native", "cpu") for p in workload.passes)
    inputs = 2 * 2 * 128 * 4  # mu and logvar, float32
    assert forward.amount(workload) * 1e9 == pytest.approx(inputs + 4)
    assert both.amount(workload) * 1e9 == pytest.approx(2 * inputs + 4)


def test_bench_writes_a_report_and_a_chart(tmp_path, monkeypatch, capsys):
    quick = [small(w) for w in _workloads.WORKLOADS if w.group in ("gaussian_kl_loss", "reparameterize")]
    monkeypatch.setattr(_workloads, "WORKLOADS", quick)
    assert cli.main(["bench", "--seconds", "0", "--out", str(tmp_path / "bench")]) == 0
    report = json.loads((tmp_path / "bench" / "bench.json").read_text())
    assert report["machine"].keys() >= {"cpu", "cores", "threads", "isa", "torch", "commit", "date"}
    assert [r["name"] for r in report["results"]] == [w.name for w in quick]
    printed = capsys.readouterr().out
    for result in report["results"]:
        assert f"{result['name']}, {result['passes']}: {result['speedup']['median']:.2f} times as fast" in printed
        speedup = result["speedup"]
        assert 0 < speedup["low"] <= speedup["median"] <= speedup["high"]
        assert result["native"]["rate"] > 0
        assert result["not_native"] == []
    assert Image.open(tmp_path / "bench" / "bench.png").size[0] > 500


def test_bench_without_kernels_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(_extension, "_CPU", _extension.LibraryStatus(False, "_cpu.so was not built"))
    assert cli.main(["bench", "--device", "cpu"]) == 2
    assert capsys.readouterr().err == "genimg-fast bench: nothing to compare: no cpu kernels (_cpu.so was not built)\n"


def test_bench_of_no_workload_is_one_line(capsys):
    assert cli.main(["bench", "--device", "cpu", "--match", "nothing"]) == 2
    assert "--match 'nothing': no workload of the quick suite is called so" in capsys.readouterr().err
