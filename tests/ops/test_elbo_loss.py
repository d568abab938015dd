# SPDX-License-Identifier: MIT
from __future__ import annotations

import numpy as np
import pytest
import torch

from genimg_fast import _backend
from genimg_fast.functional import elbo_loss
from genimg_fast.ops._check import RECONSTRUCTIONS, REDUCTIONS
from genimg_fast.reference import elbo_loss as reference
from tests import _cases
from tests.ops import _threads

ELBO_REDUCTIONS = ["batchmean", "sum", "mean"]
# What is differentiated: upstream gradients of (total, reconstruction, kl), None for a value that the user drops.
UPSTREAMS = [(0.7, None, None), (None, 0.7, None), (None, None, 0.7), (None, 1.0, 0.5), (0.7, 0.2, 0.3)]


def operands(image=(6, 3, 5, 7), latent=(6, 4), dtype=torch.float32, reconstruction="bce_with_logits"):
    recon, target = 3 * _cases.randn(image, dtype, 1), _cases.randn(image, dtype, 2).sigmoid()
    if reconstruction == "bce":
        recon = recon.sigmoid()
    return recon, target, _cases.randn(latent, dtype, 3), _cases.randn(latent, dtype, 4)


def run(function, tensors, upstreams=(0.7, None, None), **options):
    """The three values and the three gradients."""
    recon, mu, logvar = (tensors[i].clone().requires_grad_() for i in (0, 2, 3))
    values = function(recon, tensors[1], mu, logvar, **options)
    used = [(v, torch.full_like(v, u)) for v, u in zip(values, upstreams, strict=True) if u is not None]
    torch.autograd.backward(*zip(*used, strict=True))
    grads = (torch.zeros_like(t) if t.grad is None else t.grad for t in (recon, mu, logvar))
    return *(v.detach() for v in values), *grads


@pytest.mark.parametrize("reduction", ELBO_REDUCTIONS)
@pytest.mark.parametrize("reconstruction", RECONSTRUCTIONS)
@pytest.mark.parametrize(
    ("image", "latent"), [((6, 3, 5, 7), (6, 4)), ((2, 4113), (2, 1)), ((1, 1), (1, 4113)), ((0, 3), (0, 2))]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_float64(isa, dtype, image, latent, reconstruction, reduction):
    tensors = operands(image, latent, dtype, reconstruction)
    options = {"reconstruction": reconstruction, "beta": 0.3, "reduction": reduction}
    exact = run(reference.elbo_loss, [t.double() for t in tensors], **options)
    torch_result = run(reference.elbo_loss, tensors, **options)
    for name, layout in _cases.layouts(image):
        laid_out = [layout(t) if t.dim() == len(image) else t for t in tensors]
        with _backend.use_backend("native"):
            actual = run(elbo_loss, laid_out, **options)
        for a, e, t in zip(actual, exact, torch_result, strict=True):
            _cases.assert_accurate(a, e, t, what=name)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [(0, [True, True, False]), (2, [True, False, True]), (3, [True, False, True]), (None, [False, False, False])],
)
def test_a_value_requires_grad_where_what_it_is_made_of_does(backend, given, expected):
    tensors = operands()
    if given is not None:
        tensors[given].requires_grad_()
    with _backend.use_backend(backend):
        assert [v.requires_grad for v in elbo_loss(*tensors)] == expected


@pytest.mark.parametrize("beta", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("upstreams", UPSTREAMS)
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_each_value_is_differentiable_by_itself(backend, upstreams, beta):
    def composed(recon, target, mu, logvar, beta):
        bce = torch.nn.functional.binary_cross_entropy_with_logits(recon, target, reduction="sum") / recon.shape[0]
        kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum() / mu.shape[0]
        return bce + beta * kl, bce, kl

    with _backend.use_backend(backend):
        actual = run(elbo_loss, operands(), upstreams, beta=beta)
    torch.testing.assert_close(actual, run(composed, operands(), upstreams, beta=beta))


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("reconstruction", ["bce_with_logits", "mse"])
def test_nan_and_inf_travel(isa, reconstruction, value, position):
    tensors = operands()
    tensors[position].view(-1)[3] = value
    actual = run(elbo_loss, tensors, reconstruction=reconstruction)
    expected = run(reference.elbo_loss, tensors, reconstruction=reconstruction)
    torch.testing.assert_close(actual, expected, equal_nan=True)


def test_does_not_depend_on_the_number_of_threads(isa):
    tensors = operands((300, 321), (300, 123))
    _threads.check_threads(lambda: torch.stack(elbo_loss(*tensors)))


@pytest.mark.parametrize(
    ("reconstruction", "reduction", "with_grad"),
    [("bce_with_logits", "batchmean", True), ("bce", "sum", True), ("mse", "mean", True), ("mse", "mean", False)],
)
def test_opcheck(reconstruction, reduction, with_grad):
    recon, target, mu, logvar = operands((3, 5), (3, 2), reconstruction=reconstruction)
    tensors = recon.requires_grad_(), target, mu.requires_grad_(), logvar.requires_grad_()
    args = *tensors, RECONSTRUCTIONS[reconstruction], 0.3, REDUCTIONS[reduction], with_grad, False
    torch.library.opcheck(torch.ops.genimg_fast.elbo_loss.default, args)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_computes_in_float32(dtype):
    recon, target, mu, logvar = operands()
    recon, mu = recon.to(dtype), mu.to(dtype)
    with torch.autocast("cpu", dtype):
        actual = elbo_loss(recon, target, mu, logvar)
    torch.testing.assert_close(actual, elbo_loss(recon.float(), target, mu.float(), logvar))


def bad(position, value, **options):
    tensors = list(operands((4, 3), (4, 2)))
    tensors[position] = value
    return tensors, options


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (bad(1, torch.zeros(4, 2)), ValueError, r"elbo_loss: target has shape \(4, 2\) but recon has \(4, 3\)"),
        (bad(3, torch.zeros(4, 3)), ValueError, r"logvar has shape \(4, 3\) but mu has \(4, 2\)"),
        (bad(2, torch.zeros(4, 2).double()), TypeError, "mu is torch.float64 but recon is torch.float32"),
        (bad(1, torch.zeros(4, 3).long()), TypeError, "target must be floating point, got torch.int64"),
        (bad(0, torch.zeros(4, 3), reconstruction="l1"), ValueError, "reconstruction must be one of 'bce_with_logits'"),
        (
            bad(0, torch.zeros(4, 3), reduction="none"),
            ValueError,
            "reduction must be one of 'batchmean', 'sum', 'mean'",
        ),
        (bad(2, None), TypeError, "mu must be a Tensor, got NoneType"),
        (bad(0, torch.zeros(4, 3), beta=torch.ones(())), TypeError, "beta must be a number, got Tensor"),
        (bad(0, torch.zeros(4, 3), beta=float("nan")), ValueError, "elbo_loss: beta must be finite, got nan"),
        (bad(0, torch.zeros(4, 3) + 2, reconstruction="bce"), RuntimeError, "should be between 0 and 1"),
        (
            ([torch.zeros(8, 3), torch.zeros(8, 3), torch.zeros(4, 2), torch.zeros(4, 2)], {}),
            ValueError,
            r"recon has shape \(8, 3\) and mu \(4, 2\); reduction 'batchmean' needs the same batch size",
        ),
    ],
)
@pytest.mark.parametrize("backend", _backend.BACKENDS)
def test_bad_input_gets_one_clear_line(backend, call, error, message):
    tensors, options = call
    with _backend.use_backend(backend), pytest.raises(error, match=message):
        elbo_loss(*tensors, **options)


def test_beta_of_numpy():
    tensors = [_cases.randn((4, 3), seed=i) for i in range(4)]
    expected = elbo_loss(*tensors, beta=0.5)
    torch.testing.assert_close(elbo_loss(*tensors, beta=np.float32(0.5)), expected)


def test_half_types_stay():
    recon, target, mu, logvar = operands(dtype=torch.bfloat16)
    assert all(value.dtype == torch.bfloat16 for value in elbo_loss(recon, target, mu, logvar))
