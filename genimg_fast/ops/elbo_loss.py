# SPDX-License-Identifier: MIT
"""The negative evidence lower bound of a VAE: chooses the backend and ties the native op to autograd."""

from __future__ import annotations

import torch

from genimg_fast import _backend
from genimg_fast.ops import _check, _loss
from genimg_fast.ops._autocast import float32_loss_under_autocast, to_float32
from genimg_fast.ops._registration import register, wants_gradient, why_not_differentiable
from genimg_fast.reference import elbo_loss as reference


@float32_loss_under_autocast
def elbo_loss(
    recon: torch.Tensor,
    target: torch.Tensor,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    *,
    reconstruction: str = "bce_with_logits",
    beta: float = 1.0,
    reduction: str = "batchmean",
    float32_loss: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    op = "elbo_loss"
    _check.tensor(op, recon=recon, target=target, mu=mu, logvar=logvar)
    as_they_are = float32_loss and _loss.kernels_widen(recon, target, mu, logvar)
    if float32_loss and not as_they_are:
        recon, target, mu, logvar = to_float32(recon, target, mu, logvar)
    _check.same_dtype(op, recon=recon, target=None if as_they_are else target, mu=mu, logvar=logvar)
    _check.same_shape(op, recon=recon, target=target)
    _check.same_shape(op, mu=mu, logvar=logvar)
    _check.choice(op, "reconstruction", reconstruction, tuple(_check.RECONSTRUCTIONS))
    _check.choice(op, "reduction", reduction, ("batchmean", "sum", "mean"))
    beta = _check.number(op, "beta", beta)
    if reduction == "batchmean" and recon.shape[:1] != mu.shape[:1]:
        raise ValueError(
            f"{op}: recon has shape {tuple(recon.shape)} and mu {tuple(mu.shape)}; reduction 'batchmean' needs the same "
            "batch size in both"
        )
    unless = why_not_differentiable(target=target)
    if not _backend.use_native(op, recon, target, mu, logvar, unless=unless):
        if as_they_are:
            recon, target, mu, logvar = to_float32(recon, target, mu, logvar)
        return reference.elbo_loss(recon, target, mu, logvar, reconstruction, beta, reduction)
    total, reconstruction_loss, kl, *_ = torch.ops.genimg_fast.elbo_loss(
        recon, target, mu, logvar, _check.RECONSTRUCTIONS[reconstruction], beta, _check.REDUCTIONS[reduction],
        wants_gradient(recon, mu, logvar), float32_loss,
    )  # fmt: skip
    if total.requires_grad and not _backend.inside_func_transform():  # inside vmap nothing tells who requires grad
        reconstruction_loss = reconstruction_loss if wants_gradient(recon) else reconstruction_loss.detach()
        kl = kl if wants_gradient(mu, logvar) else kl.detach()
    return total, reconstruction_loss, kl


def _fake(recon, target, mu, logvar, reconstruction, beta, reduction, with_grad, float32_loss):
    losses = [_loss.new_loss(recon, float32_loss) for _ in range(3)]
    return *losses, *(_loss.saved_gradient(t, with_grad) for t in (recon, mu, logvar))


def _setup_context(ctx, inputs, output):
    recon, target, mu, logvar, ctx.reconstruction, ctx.beta, ctx.reduction, ctx.with_grad, ctx.float32_loss = inputs
    gradients = output[3:]
    _loss.keep(ctx, differentiable=(0, 2, 3), gradients=gradients)
    ctx.save_for_backward(recon, target, mu, logvar, *gradients)


def _backward(ctx, grad_total, grad_reconstruction, grad_kl, *_):
    _loss.refuse_other_gradients("elbo_loss", ctx)
    recon, target, mu, logvar, *gradients = ctx.saved_tensors
    # total = reconstruction + beta * kl: what reaches the total reaches both terms
    if grad_total is not None:
        grad_reconstruction = grad_total if grad_reconstruction is None else grad_reconstruction + grad_total
        through_total = grad_total if ctx.beta == 1 else ctx.beta * grad_total
        grad_kl = through_total if grad_kl is None else grad_kl + through_total
    if torch.is_grad_enabled() or not ctx.with_grad:  # create_graph=True: use formulas with derivatives
        dtype = recon.dtype
        if ctx.float32_loss:
            recon, target, mu, logvar = to_float32(recon, target, mu, logvar)
        made = reference.elbo_loss_backward(
            grad_reconstruction, grad_kl, recon, target, mu, logvar,
            _check.name_of(ctx.reconstruction, _check.RECONSTRUCTIONS),
            _check.name_of(ctx.reduction, _check.REDUCTIONS),
        )  # fmt: skip
        grad_recon, grad_mu, grad_logvar = (None if g is None else g.to(dtype) for g in made)
    else:
        upstreams = grad_reconstruction, grad_kl, grad_kl
        grad_recon, grad_mu, grad_logvar = (
            _loss.times_upstream(gradient, upstream, recon.dtype)
            for gradient, upstream in zip(gradients, upstreams, strict=True)
        )
    return grad_recon, None, grad_mu, grad_logvar, None, None, None, None, None


register("elbo_loss", _fake, backward=_backward, setup_context=_setup_context)
