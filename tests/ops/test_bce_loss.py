# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch

from genimg_fast import _backend
from genimg_fast.functional import bce_loss
from genimg_fast.ops._check import REDUCTIONS
from genimg_fast.reference import bce_loss as reference
from tests import _cases
from tests.ops import _threads

LOSS_REDUCTIONS = ["none", "mean", "sum"]


@pytest.fixture(autouse=True)
def native():
    """Whatever is faster."""
    with _backend.use_backend("native"):
        yield


def probabilities(shape, dtype=torch.float32, seed=1):
    return (3 * _cases.randn(shape, dtype, seed)).sigmoid()


def run(function, input, target, weight, reduction):
    """The value and the gradient, under an upstream gradient that is not 1."""
    input = input.clone().requires_grad_()
    out = function(input, target, weight, reduction=reduction)
    out.backward(torch.full_like(out, 0.7))
    return out.detach(), input.grad


@pytest.mark.parametrize("reduction", LOSS_REDUCTIONS)
@pytest.mark.parametrize("shape", _cases.ELEMENTWISE_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_float64(isa, shape, dtype, reduction):
    input, target = probabilities(shape, dtype), _cases.randn(shape, dtype, 2).sigmoid()
    exact = run(reference.bce_loss, input.double(), target.double(), None, reduction)
    torch_result = run(reference.bce_loss, input, target, None, reduction)
    for name, layout in _cases.layouts(shape):
        with _backend.use_backend("native"):
            actual = run(bce_loss, layout(input), layout(target), None, reduction)
        for a, e, t in zip(actual, exact, torch_result, strict=True):
            _cases.assert_accurate(a, e, t, what=name)


@pytest.mark.parametrize("reduction", LOSS_REDUCTIONS)
@pytest.mark.parametrize("weight_shape", [(4, 3, 5), (3, 1), (5,), ()])
def test_weight_broadcasts(isa, weight_shape, reduction):
    input, target, weight = probabilities((4, 3, 5)), probabilities((4, 3, 5), seed=2), _cases.randn(weight_shape)
    with _backend.use_backend("native"):
        actual = run(bce_loss, input, target, weight, reduction)
    torch.testing.assert_close(actual, run(reference.bce_loss, input, target, weight, reduction))


def test_ends_of_the_interval(isa):
    tiny = torch.finfo(torch.float32).tiny
    edges = torch.tensor([0.0, 1.0, tiny, 1e-40, 1e-13, 1e-8, 0.5, 1 - 2**-24])
    input, target = torch.cartesian_prod(edges, torch.tensor([0.0, 0.3, 1.0])).unbind(1)
    with _backend.use_backend("native"):
        actual = run(bce_loss, input.contiguous(), target.contiguous(), None, "none")
    exact = run(reference.bce_loss, input.double(), target.double(), None, "none")
    for a, e in zip(actual, exact, strict=True):
        torch.testing.assert_close(a.double(), e, atol=0, rtol=1e-6)


@pytest.mark.parametrize("bad", [-1e-6, 1.000001, float("nan"), float("inf")])
@pytest.mark.parametrize("reduction", LOSS_REDUCTIONS)
@pytest.mark.parametrize("where", [0, 33])
def test_values_outside_the_interval_are_refused(isa, bad, reduction, where):
    good, outside = probabilities((34,)), probabilities((34,))
    outside[where] = bad
    for backend in _backend.BACKENDS:
        with _backend.use_backend(backend):
            with pytest.raises(RuntimeError, match="all elements of input should be between 0 and 1"):
                bce_loss(outside, good, reduction=reduction)
            with pytest.raises(RuntimeError, match="all elements of target should be between 0 and 1"):
                bce_loss(good, outside, reduction=reduction)


def test_sum_does_not_depend_on_the_number_of_threads(isa):
    _threads.check_threads(lambda: bce_loss(probabilities((300, 321)), probabilities((300, 321), seed=2)))


@pytest.mark.parametrize(
    ("reduction", "weighted", "with_grad"),
    [("none", True, True), ("mean", False, True), ("sum", True, True), ("mean", False, False)],
)
def test_opcheck(reduction, weighted, with_grad):
    input, target = probabilities((5, 3)).requires_grad_(), probabilities((5, 3), seed=2)
    weight = torch.tensor([0.5, 1.0, 2.0]).expand(5, 3) if weighted else None
    args = input, target, weight, REDUCTIONS[reduction], with_grad, False
    torch.library.opcheck(torch.ops.genimg_fast.bce_loss.default, args)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_computes_in_float32(dtype):
    input, target = probabilities((50,)).to(dtype), probabilities((50,), seed=2)
    with torch.autocast("cpu", dtype):
        loss = bce_loss(input, target)
    torch.testing.assert_close(loss, bce_loss(input.float(), target))


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((torch.zeros(2), torch.zeros(3)), {}, ValueError, r"bce_loss: target has shape \(3,\) but input has \(2,\)"),
        ((torch.zeros(2), torch.zeros(2).long()), {}, TypeError, "target must be floating point, got torch.int64"),
        (
            (torch.zeros(2), torch.zeros(2).double()),
            {},
            TypeError,
            "target is torch.float64 but input is torch.float32",
        ),
        ((torch.zeros(2), 0.0), {}, TypeError, "target must be a Tensor, got float"),
        ((torch.zeros(2), None), {}, TypeError, "target must be a Tensor, got NoneType"),
        (
            (torch.zeros(4, 2), torch.zeros(4, 2), torch.zeros(4)),
            {},
            ValueError,
            r"weight has shape \(4,\), which does not broadcast to input's \(4, 2\)",
        ),
        (
            (torch.zeros(2), torch.zeros(2)),
            {"reduction": "batchmean"},
            ValueError,
            "reduction must be one of 'none', 'mean', 'sum', got 'batchmean'",
        ),
        ((torch.zeros(2), torch.zeros(2, device="meta")), {}, ValueError, "target is on meta but input is on cpu"),
    ],
)
@pytest.mark.parametrize("backend", _backend.BACKENDS)
def test_bad_input_gets_one_clear_line(backend, args, kwargs, error, message):
    with _backend.use_backend(backend), pytest.raises(error, match=message):
        bce_loss(*args, **kwargs)
