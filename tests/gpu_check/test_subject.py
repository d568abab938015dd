# SPDX-License-Identifier: MIT
"""The checks of an op find what is wrong.  They need a GPU: tests/simulated_gpu runs this file too."""

from __future__ import annotations

from itertools import count

import pytest
import torch

from tests.gpu_check import cases, subject

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

OP = "gaussian_kl_loss"


def replace_kernel(monkeypatch, change):
    right = torch.ops.genimg_fast.gaussian_kl_loss
    monkeypatch.setattr(torch.ops.genimg_fast, OP, lambda *arguments: change(*right(*arguments)))


def checked(check):
    found = subject.Findings()
    check(found, OP, 0, quick=True)
    return found.result()


def test_a_wrong_value_is_found(monkeypatch):
    replace_kernel(monkeypatch, lambda loss, *gradients: (loss * 1.0001, *gradients))
    result = checked(subject.parity)
    assert not result["ok"]
    assert "output 0: rms error" in result["failed"][0]
    assert len(result["failed"]) <= subject.MOST_FAILURES <= result["cases"] + 10


def test_an_output_that_is_left_out_is_found(monkeypatch):
    """It is NaN, though memory that was used before would often hold the right values."""
    replace_kernel(monkeypatch, lambda loss, *gradients: (torch.empty_like(loss) + 0 * loss, *gradients))
    result = checked(subject.parity)
    assert result["failures"] >= result["cases"] - 2  # but the control, and where there are no values


def test_a_kernel_that_varies_is_found(monkeypatch):
    runs = count()
    replace_kernel(monkeypatch, lambda loss, *gradients: (loss + 1e-6 * next(runs), *gradients))
    result = checked(subject.determinism)
    assert not result["ok"]
    assert "output 0 differs by up to" in result["failed"][0]


def test_what_needs_a_fresh_plan_in_each_call_is_found(monkeypatch):
    """A graph that keeps the values it was captured with."""
    monkeypatch.setattr(subject.models, "captured", lambda function: (lambda results: lambda: results)(function()))
    result = checked(subject.graph)
    assert not result["ok"]


def test_every_operator_of_the_ops_is_opchecked():
    native = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("genimg_fast::")}
    of_the_cpu = ("block_chain", "conv_weight_grad", "cpu_", "best_cpu", "set_cpu", "philox4x32")
    checked = {name for op in cases.OPS for name, _ in subject.operators(op)}
    not_checked = {name for name in native - checked if not name.startswith(of_the_cpu)}
    assert not_checked == {"convolution_block_pack"}  # how large its output is only the library knows
