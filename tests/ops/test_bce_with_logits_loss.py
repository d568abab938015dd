# SPDX-License-Identifier: MIT
from __future__ import annotations

import pytest
import torch

from genimg_fast import _backend
from genimg_fast.functional import bce_with_logits_loss
from genimg_fast.ops._check import REDUCTIONS
from genimg_fast.reference import bce_with_logits_loss as reference
from tests import _cases
from tests.ops import _threads

LOSS_REDUCTIONS = ["none", "mean", "sum"]
POSITIVE = torch.tensor([0.5, 1.0, 3.0])


@pytest.fixture(autouse=True)
def native():
    """Whatever is faster."""
    with _backend.use_backend("native"):
        yield


def logits(shape, dtype=torch.float32, seed=1):
    return 4 * _cases.randn(shape, dtype, seed)


def targets(shape, dtype=torch.float32, seed=2):
    return _cases.randn(shape, dtype, seed).sigmoid()


def run(function, input, target, weight=None, pos_weight=None, reduction="mean"):
    """The value and the gradient, under an upstream gradient that is not 1."""
    input = input.clone().requires_grad_()
    out = function(input, target, weight, pos_weight=pos_weight, reduction=reduction)
    out.backward(torch.full_like(out, 0.7))
    return out.detach(), input.grad


@pytest.mark.parametrize("reduction", LOSS_REDUCTIONS)
@pytest.mark.parametrize("shape", _cases.ELEMENTWISE_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_matches_float64(isa, shape, dtype, reduction):
    input, target = logits(shape, dtype), targets(shape, dtype)
    function = reference.bce_with_logits_loss
    exact = run(function, input.double(), target.double(), reduction=reduction)
    torch_result = run(function, input, target, reduction=reduction)
    for name, layout in _cases.layouts(shape):
        with _backend.use_backend("native"):
            actual = run(bce_with_logits_loss, layout(input), layout(target), reduction=reduction)
        for a, e, t in zip(actual, exact, torch_result, strict=True):
            _cases.assert_accurate(a, e, t, what=name)


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("weight_shape", [None, (3, 1)])
@pytest.mark.parametrize("pos_weight_shape", [None, (4, 3, 5), (3, 1), (5,), ()])
def test_weights_broadcast(isa, weight_shape, pos_weight_shape, reduction):
    input, target = logits((4, 3, 5)), targets((4, 3, 5))
    weight = weight_shape if weight_shape is None else _cases.randn(weight_shape, seed=3)
    pos_weight = pos_weight_shape if pos_weight_shape is None else _cases.randn(pos_weight_shape, seed=4).exp()
    with _backend.use_backend("native"):
        actual = run(bce_with_logits_loss, input, target, weight, pos_weight, reduction)
    expected = run(reference.bce_with_logits_loss, input, target, weight, pos_weight, reduction)
    torch.testing.assert_close(actual, expected)


def test_nan_inf_and_large_logits_travel(isa):
    inf = float("inf")
    values = torch.tensor([0.0, -0.0, 90.0, -90.0, 200.0, -200.0, 1e38, -1e38, inf, -inf, float("nan")])
    input, target = torch.cartesian_prod(values, torch.tensor([0.0, 0.3, 1.0, inf, float("nan")])).unbind(1)
    input, target = input.contiguous(), target.contiguous()
    for pos_weight in (None, torch.tensor(2.0), torch.tensor(inf)):
        with _backend.use_backend("native"):
            actual = run(bce_with_logits_loss, input, target, pos_weight=pos_weight, reduction="none")
        expected = run(reference.bce_with_logits_loss, input, target, pos_weight=pos_weight, reduction="none")
        torch.testing.assert_close(actual, expected, equal_nan=True)


def test_a_small_loss_keeps_its_digits(isa):
    """PyTorch's own loses them: the logarithm is added to the logit, from which the logit is taken again."""
    logits = torch.tensor([-5.0, -10.0, -15.0, -40.0])
    for input, target in ((logits, 0.0), (-logits, 1.0)):
        for pos_weight in (None, torch.tensor(1.0)):
            with _backend.use_backend("native"):
                actual = bce_with_logits_loss(
                    input, torch.full_like(input, target), pos_weight=pos_weight, reduction="none"
                )
            torch.testing.assert_close(actual.double(), logits.double().exp().log1p(), rtol=1e-6, atol=0)


def test_channels_last_in_channels_last_out(isa):
    input = logits((2, 3, 4, 5)).contiguous(memory_format=torch.channels_last).requires_grad_()
    loss = bce_with_logits_loss(input, targets((2, 3, 4, 5)), reduction="none")
    assert loss.is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(loss.sum(), input)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_sum_does_not_depend_on_the_number_of_threads(isa):
    _threads.check_threads(lambda: bce_with_logits_loss(logits((300, 321)), targets((300, 321))))


@pytest.mark.parametrize(
    ("reduction", "weighted", "with_grad"),
    [("none", True, True), ("mean", False, True), ("sum", True, True), ("mean", False, False)],
)
def test_opcheck(reduction, weighted, with_grad):
    weights = [POSITIVE.expand(5, 3) if weighted else None] * 2
    args = logits((5, 3)).requires_grad_(), targets((5, 3)), *weights, REDUCTIONS[reduction], with_grad, False
    torch.library.opcheck(torch.ops.genimg_fast.bce_with_logits_loss.default, args)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_computes_in_float32(dtype):
    input, target = logits((50,)).to(dtype), targets((50,))
    with torch.autocast("cpu", dtype):
        loss = bce_with_logits_loss(input, target)
    torch.testing.assert_close(loss, bce_with_logits_loss(input.float(), target))


def test_mixed_dtypes_are_promoted_as_by_torch():
    input, target = logits((50,)).requires_grad_(), targets((50,), torch.float64)
    with _backend.use_backend("auto"), _backend.record_decisions() as decisions:
        loss = bce_with_logits_loss(input, target)
    assert decisions[0].reason == "target is torch.float64 but input is torch.float32; the kernels do not promote"
    torch.testing.assert_close(loss, torch.nn.functional.binary_cross_entropy_with_logits(input, target))


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((torch.zeros(2), torch.zeros(3)), {}, ValueError, r"target has shape \(3,\) but input has \(2,\)"),
        ((torch.zeros(2), torch.zeros(2).bool()), {}, TypeError, "target must be floating point, got torch.bool"),
        (
            (torch.zeros(4, 2), torch.zeros(4, 2)),
            {"pos_weight": torch.zeros(4)},
            ValueError,
            r"pos_weight has shape \(4,\), which does not broadcast to input's \(4, 2\)",
        ),
        (
            (torch.zeros(2), torch.zeros(2), torch.zeros(1, 1, 2)),
            {},
            ValueError,
            r"weight has shape \(1, 1, 2\), which does not broadcast",
        ),
        ((torch.zeros(2), torch.zeros(2)), {"reduction": "avg"}, ValueError, "reduction must be one of 'none', 'mean'"),
        ((torch.zeros(2), torch.zeros(2, device="meta")), {}, ValueError, "target is on meta but input is on cpu"),
    ],
)
@pytest.mark.parametrize("backend", _backend.BACKENDS)
def test_bad_input_gets_one_clear_line(backend, args, kwargs, error, message):
    with _backend.use_backend(backend), pytest.raises(error, match=message):
        bce_with_logits_loss(*args, **kwargs)


@pytest.mark.parametrize("name", ["weight", "pos_weight"])
def test_names_a_tensor_on_another_device(name):
    with pytest.raises(ValueError, match=f"{name} is on meta but input is on cpu"):
        bce_with_logits_loss(logits((4, 3)), targets((4, 3)), **{name: torch.ones(3, device="meta")})
