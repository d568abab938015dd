# SPDX-License-Identifier: MIT
"""The negative evidence lower bound of a VAE in plain PyTorch (Kingma and Welling 2014; beta: Higgins et al. 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from genimg_fast.reference.bce_loss import bce_loss, bce_loss_backward
from genimg_fast.reference.bce_with_logits_loss import bce_with_logits_loss, bce_with_logits_loss_backward
from genimg_fast.reference.gaussian_kl_loss import (
    gaussian_kl_loss,
    gaussian_kl_loss_backward,
    reduce,
    reduction_scale,
)


def elbo_loss(
    recon: torch.Tensor,
    target: torch.Tensor,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    reconstruction: str = "bce_with_logits",
    beta: float = 1.0,
    reduction: str = "batchmean",
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if reconstruction == "bce_with_logits":
        errors = bce_with_logits_loss(recon, target, reduction="none")
    elif reconstruction == "bce":
        errors = bce_loss(recon, target, reduction="none")
    else:
        errors = F.mse_loss(recon, target, reduction="none")
    reconstruction_loss = reduce(errors, reduction)
    kl = gaussian_kl_loss(mu, logvar, reduction)
    return reconstruction_loss + beta * kl, reconstruction_loss, kl


def reconstruction_backward(
    grad: torch.Tensor, recon: torch.Tensor, target: torch.Tensor, reconstruction: str, reduction: str
) -> torch.Tensor:
    """The gradient of the reconstruction term with respect to `recon`, given that of the loss value."""
    grad = grad * reduction_scale(recon, reduction)
    if reconstruction == "bce_with_logits":
        return bce_with_logits_loss_backward(grad, recon, target, None, None, "sum")
    if reconstruction == "bce":
        return bce_loss_backward(grad, recon, target, None, "sum")
    return grad * 2 * (recon - target)


def elbo_loss_backward(
    grad_reconstruction: torch.Tensor | None,
    grad_kl: torch.Tensor | None,
    recon: torch.Tensor,
    target: torch.Tensor,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    reconstruction: str,
    reduction: str,
) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    """The gradients with respect to recon, mu and logvar, given those of the two terms; None: the term was not used."""
    grad_recon = grad_mu = grad_logvar = None
    if grad_reconstruction is not None:
        grad_recon = reconstruction_backward(grad_reconstruction, recon, target, reconstruction, reduction)
    if grad_kl is not None:
        grad_mu, grad_logvar = gaussian_kl_loss_backward(grad_kl, mu, logvar, reduction)
    return grad_recon, grad_mu, grad_logvar
