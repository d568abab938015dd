# SPDX-License-Identifier: MIT
"""A sample of N(mu, exp(logvar)) and its KL divergence from N(0, I): chooses the backend and ties the native op to autograd."""

from __future__ import annotations

import torch

from genimg_fast import _backend
from genimg_fast.ops import _check
from genimg_fast.ops._autocast import float32_under_autocast
from genimg_fast.ops._registration import register
from genimg_fast.ops.reparameterize import draw_seed, gradients_of_sample
from genimg_fast.reference import reparameterize_with_kl as reference


@float32_under_autocast
def reparameterize_with_kl(
    mu: torch.Tensor, logvar: torch.Tensor, reduction: str = "mean", *, generator: torch.Generator | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    op = "reparameterize_with_kl"
    _check.tensor(op, mu=mu, logvar=logvar)
    _check.same_dtype(op, mu=mu, logvar=logvar)
    _check.same_shape(op, mu=mu, logvar=logvar)
    _check.choice(op, "reduction", reduction, tuple(_check.REDUCTIONS))
    _check.generator(op, generator)
    return reparameterize_with_kl_and_seed(mu, logvar, draw_seed(mu, generator), reduction)


def reparameterize_with_kl_and_seed(
    mu: torch.Tensor, logvar: torch.Tensor, seed: torch.Tensor, reduction: str = "mean"
) -> tuple[torch.Tensor, torch.Tensor]:
    """`reparameterize_with_kl` with the noise of `seed`, one int64 on mu's device or on the CPU."""
    if not _backend.use_native("reparameterize_with_kl", mu, logvar):
        return reference.reparameterize_with_kl(mu, logvar, seed, reduction)
    return torch.ops.genimg_fast.reparameterize_with_kl(mu, logvar, seed, _check.REDUCTIONS[reduction])


def _fake(mu, logvar, seed, reduction):
    kl = torch.empty_like(mu) if reduction == _check.REDUCTIONS["none"] else mu.new_empty(())
    return torch.empty_like(mu), kl


def _fake_backward(grad_z, grad_kl, mu, logvar, seed, reduction):
    return torch.empty_like(mu), torch.empty_like(logvar)


def _setup_context(ctx, inputs, output):
    mu, logvar, seed, ctx.reduction = inputs
    ctx.set_materialize_grads(False)  # what was not used needs no pass over zeros
    ctx.save_for_backward(mu, logvar, seed)


def _backward(ctx, grad_z, grad_kl):
    mu, logvar, seed = ctx.saved_tensors
    if grad_kl is None:
        gradients = (None, None) if grad_z is None else gradients_of_sample(grad_z, logvar, seed)
    elif torch.is_grad_enabled():  # the backward is itself recorded (create_graph=True): use formulas with derivatives
        reduction = _check.name_of(ctx.reduction, _check.REDUCTIONS)
        gradients = reference.reparameterize_with_kl_backward(grad_z, grad_kl, mu, logvar, seed, reduction)
    else:
        gradients = torch.ops.genimg_fast.reparameterize_with_kl_backward(
            grad_z, grad_kl, mu, logvar, seed, ctx.reduction
        )
    return *gradients, None, None


register("reparameterize_with_kl", _fake, backward=_backward, setup_context=_setup_context)
register("reparameterize_with_kl_backward", _fake_backward)
