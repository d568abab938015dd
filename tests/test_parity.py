# SPDX-License-Identifier: MIT
from __future__ import annotations

import math

import pytest
import torch

from genimg_fast import _parity, functional, use_backend
from genimg_fast._backend import current_backend

# formulas over the other ops, and the kernels of batch_norm_act
NOT_KERNELS = {"gan_loss", "gradient_penalty", "sync_batch_norm_act"}


def test_every_op_has_a_case():
    assert set(_parity.CASES) == set(functional.__all__) - NOT_KERNELS


@pytest.mark.parametrize("op", _parity.CASES)
def test_kernels_pass(isa, op):
    parity = _parity.check(op, "cpu")
    assert parity.ok
    assert parity.difference < 1e-5


@pytest.mark.parametrize("op", _parity.CASES)
@pytest.mark.parametrize("error", [1e-3, math.nan])
def test_a_wrong_kernel_fails(monkeypatch, op, error):
    right = getattr(functional, op)

    def wrong(*args, **kwargs):
        result = right(*args, **kwargs)
        if current_backend() == "reference":
            return result
        return result + error if isinstance(result, torch.Tensor) else tuple(r + error for r in result)

    monkeypatch.setattr(functional, op, wrong)
    assert not _parity.check(op, "cpu").ok


@pytest.mark.parametrize("op", _parity.CASES)
def test_a_wrong_gradient_fails(monkeypatch, op):
    right = getattr(functional, op)

    def wrong(first, *args, **kwargs):
        if current_backend() == "native":  # the value stays, the gradient of the first argument is off by 1 in 100
            first = first * 1.01 - first.detach() * 0.01
        return right(first, *args, **kwargs)

    monkeypatch.setattr(functional, op, wrong)
    assert not _parity.check(op, "cpu").ok


def test_decisions_tell_what_runs_and_why():
    assert [d.native for d in _parity.decisions("gaussian_kl_loss", "cpu")] == [True]
    with use_backend("reference"):
        (decision,) = _parity.decisions("gaussian_kl_loss", "cpu")
    assert decision == ("gaussian_kl_loss", False, "the backend is set to 'reference'")


def test_without_kernels_the_check_says_so():
    with pytest.raises(RuntimeError, match="no kernels for device type 'meta'"):
        _parity.check("gaussian_kl_loss", "meta")
