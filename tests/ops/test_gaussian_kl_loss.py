# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch

from genimg_fast import _backend
from genimg_fast.ops._check import REDUCTIONS
from genimg_fast.ops.gaussian_kl_loss import gaussian_kl_loss
from genimg_fast.reference import gaussian_kl_loss as reference
from tests import _cases
from tests.ops import _threads


def run(function, mu, logvar, reduction):
    """The value and both gradients, under an upstream gradient that is not 1."""
    mu, logvar = mu.clone().requires_grad_(), logvar.clone().requires_grad_()
    out = function(mu, logvar, reduction)
    out.backward(torch.full_like(out, 0.7))
    return out.detach(), mu.grad, logvar.grad


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", _cases.ELEMENTWISE_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_float64(isa, shape, dtype, reduction):
    mu, logvar = _cases.randn(shape, dtype, 1), 2 * _cases.randn(shape, dtype, 2)
    exact = run(reference.gaussian_kl_loss, mu.double(), logvar.double(), reduction)
    torch_result = run(reference.gaussian_kl_loss, mu, logvar, reduction)
    for name, layout in _cases.layouts(shape):
        with _backend.use_backend("native"):
            actual = run(gaussian_kl_loss, layout(mu), layout(logvar), reduction)
        for a, e, t in zip(actual, exact, torch_result, strict=True):
            _cases.assert_accurate(a, e, t, what=name)


def test_nan_and_inf_travel(isa):
    mu = torch.tensor([float("nan"), float("inf"), 0.0, 0.0, 0.0])
    logvar = torch.tensor([0.0, 0.0, float("nan"), float("inf"), float("-inf")])
    actual = run(gaussian_kl_loss, mu, logvar, "none")
    for a, e in zip(actual, run(reference.gaussian_kl_loss, mu, logvar, "none"), strict=True):
        torch.testing.assert_close(a, e, equal_nan=True)


def test_sum_does_not_depend_on_the_number_of_threads(isa):
    mu, logvar = _cases.randn((300, 321), seed=1), _cases.randn((300, 321), seed=2)
    _threads.check_threads(lambda: gaussian_kl_loss(mu, logvar, "sum"))


def test_opcheck():
    for code in REDUCTIONS.values():
        inputs = _cases.randn((5, 3), seed=1).requires_grad_(), _cases.randn((5, 3), seed=2).requires_grad_()
        for with_grad in (True, False):
            torch.library.opcheck(torch.ops.genimg_fast.gaussian_kl_loss.default, (*inputs, code, with_grad))


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((torch.zeros(2), torch.zeros(3)), ValueError, r"gaussian_kl_loss: logvar has shape \(3,\) but mu has \(2,\)"),
        ((torch.zeros(2), torch.zeros(2).double()), TypeError, "logvar is torch.float64 but mu is torch.float32"),
        ((torch.zeros(2).long(), torch.zeros(2)), TypeError, "mu must be floating point, got torch.int64"),
        ((3.0, torch.zeros(2)), TypeError, "mu must be a Tensor, got float"),
        (
            (torch.zeros(2), torch.zeros(2), "avg"),
            ValueError,
            "reduction must be one of 'none', 'mean', 'sum', 'batchmean'",
        ),
        ((torch.zeros(2), torch.zeros(2, device="meta")), ValueError, "logvar is on meta but mu is on cpu"),
    ],
)
@pytest.mark.parametrize("backend", _backend.BACKENDS)
def test_bad_input_gets_one_clear_line(backend, args, error, message):
    with _backend.use_backend(backend), pytest.raises(error, match=message):
        gaussian_kl_loss(*args)
