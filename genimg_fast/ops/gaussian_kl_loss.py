# SPDX-License-Identifier: MIT
"""KL(N(mu, exp(logvar)) ‖ N(0, I)): chooses the backend and ties the native op to autograd."""

from __future__ import annotations

import torch

from genimg_fast import _backend
from genimg_fast.ops import _check
from genimg_fast.ops._autocast import float32_under_autocast
from genimg_fast.ops._registration import register
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
    return torch.ops.genimg_fast.gaussian_kl_loss(mu, logvar, _check.REDUCTIONS[reduction])


def _fake(mu, logvar, reduction):
    return torch.empty_like(mu) if reduction == _check.REDUCTIONS["none"] else mu.new_empty(())


def _fake_backward(grad, mu, logvar, reduction):
    return torch.empty_like(mu), torch.empty_like(mu)


def _setup_context(ctx, inputs, output):
    mu, logvar, ctx.reduction = inputs
    ctx.save_for_backward(mu, logvar)


def _backward(ctx, grad):
    mu, logvar = ctx.saved_tensors
    if torch.is_grad_enabled():  # the backward is itself recorded (create_graph=True): use formulas with derivatives
        return *reference.gaussian_kl_loss_backward(grad, mu, logvar, _check.reduction_name(ctx.reduction)), None
    return *torch.ops.genimg_fast.gaussian_kl_loss_backward(grad, mu, logvar, ctx.reduction), None


register("gaussian_kl_loss", _fake, backward=_backward, setup_context=_setup_context)
register("gaussian_kl_loss_backward", _fake_backward)
