# SPDX-License-Identifier: MIT
"""Binary cross-entropy of probabilities: chooses the backend and ties the native op to autograd."""

from __future__ import annotations

import torch

from genimg_fast import _backend
from genimg_fast.ops import _check, _loss
from genimg_fast.ops._autocast import float32_loss_under_autocast, to_float32
from genimg_fast.ops._registration import register, wants_gradient, why_not_differentiable
from genimg_fast.reference import bce_loss as reference

# Elements, with and without a gradient, on which the kernel saves as much time as it takes to get to it from Python.
_WORTH_A_KERNEL = (1 << 12, 1 << 10)


@float32_loss_under_autocast
def bce_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    reduction: str = "mean",
    float32_loss: bool = False,
) -> torch.Tensor:
    op = "bce_loss"
    _check.tensor(op, input=input, target=target)
    _check.on_device(op, input=input, weight=weight)
    as_they_are = float32_loss and reduction != "none" and _loss.kernels_widen(input, target, weight)
    if float32_loss and not as_they_are:
        input, target, weight = to_float32(input, target, weight)
    _check.same_dtype(op, input=input, target=None if as_they_are else target)
    _check.same_shape(op, input=input, target=target)
    _check.expands(op, input, "input", weight=weight)
    _check.choice(op, "reduction", reduction, ("none", "mean", "sum"))
    promotes = _loss.why_not_one_dtype(input, weight=weight)
    unless = promotes or why_not_differentiable(target=target, weight=weight)
    if not _backend.use_native(
        op, input, target, weight, unless=unless, slower=lambda: _loss.why_slower(input, *_WORTH_A_KERNEL)
    ):
        if as_they_are:
            input, target, weight = to_float32(input, target, weight)
        return reference.bce_loss(input, target, weight, reduction)
    weight = weight if weight is None else weight.expand_as(input)
    code = _check.REDUCTIONS[reduction]
    loss, _ = torch.ops.genimg_fast.bce_loss(input, target, weight, code, wants_gradient(input), float32_loss)
    return loss


def _fake(input, target, weight, reduction, with_grad, float32_loss):
    reduced = reduction != _check.REDUCTIONS["none"]
    loss = _loss.new_loss(input, float32_loss) if reduced else torch.empty_like(input)
    return loss, _loss.saved_gradient(input, with_grad)


def _setup_context(ctx, inputs, output):
    input, target, weight, ctx.reduction, ctx.with_grad, ctx.float32_loss = inputs
    _, gradient = output
    _loss.keep(ctx, differentiable=(0,), gradients=(gradient,))
    ctx.save_for_backward(input, target, weight, gradient)


def _backward(ctx, grad, _):
    grad_input = _loss.gradient_of_input("bce_loss", ctx, grad, reference.bce_loss_backward)
    return grad_input, None, None, None, None, None


register("bce_loss", _fake, backward=_backward, setup_context=_setup_context)
