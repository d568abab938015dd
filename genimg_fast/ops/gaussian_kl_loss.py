# SPDX-License-Identifier: MIT
"""KL(N(mu, exp(logvar)) ‖ N(0, I)): chooses the backend and ties the native op to autograd."""

from __future__ import annotations

import torch

from genimg_fast import _backend
from genimg_fast.ops import _check, _loss
from genimg_fast.ops._autocast import float32_under_autocast
from genimg_fast.ops._registration import register, wants_gradient
from genimg_fast.reference import gaussian_kl_loss as reference


@float32_under_autocast
def gaussian_kl_loss(mu: torch.Tensor, logvar: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    op = "gaussian_kl_loss"
    _check.tensor(op, mu=mu, logvar=logvar)
    _check.same_dtype(op, mu=mu, logvar=logvar)
    _check.same_shape(op, mu=mu, logvar=logvar)
    _check.choice(op, "reduction", reduction, tuple(_check.REDUCTIONS))
    if not _backend.use_native(op, mu, logvar):
        return reference.gaussian_kl_loss(mu, logvar, reduction)
    loss, *_ = torch.ops.genimg_fast.gaussian_kl_loss(
        mu, logvar, _check.REDUCTIONS[reduction], wants_gradient(mu, logvar)
    )
    return loss


def _fake(mu, logvar, reduction, with_grad):
    loss = torch.empty_like(mu) if reduction == _check.REDUCTIONS["none"] else mu.new_empty(())
    return loss, _loss.saved_gradient(mu, with_grad), _loss.saved_gradient(logvar, with_grad)


def _setup_context(ctx, inputs, output):
    mu, logvar, ctx.reduction, ctx.with_grad = inputs
    gradients = output[1:]
    _loss.keep(ctx, differentiable=(0, 1), gradients=gradients)
    ctx.save_for_backward(mu, logvar, *gradients)


def _backward(ctx, grad, *_):
    mu, logvar, *gradients = ctx.saved_tensors
    if grad is None:
        return None, None, None, None
    if torch.is_grad_enabled() or not ctx.with_grad:  # create_graph=True: use formulas with derivatives
        reduction = _check.name_of(ctx.reduction, _check.REDUCTIONS)
        return *reference.gaussian_kl_loss_backward(grad, mu, logvar, reduction), None, None
    return *(_loss.times_upstream(gradient, grad, mu.dtype) for gradient in gradients), None, None


register("gaussian_kl_loss", _fake, backward=_backward, setup_context=_setup_context)
