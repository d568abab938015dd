# SPDX-License-Identifier: MIT
"""A sample of N(mu, exp(logvar)) and its KL divergence from N(0, I) (Kingma and Welling 2014), in plain PyTorch."""

from __future__ import annotations

import torch

from genimg_fast.reference.gaussian_kl_loss import gaussian_kl_loss, gaussian_kl_loss_backward
from genimg_fast.reference.reparameterize import reparameterize, reparameterize_backward


def reparameterize_with_kl(
    mu: torch.Tensor, logvar: torch.Tensor, seed: torch.Tensor, reduction: str = "mean"
) -> tuple[torch.Tensor, torch.Tensor]:
    return reparameterize(mu, logvar, seed), gaussian_kl_loss(mu, logvar, reduction)


def reparameterize_with_kl_backward(
    grad_z: torch.Tensor | None,
    grad_kl: torch.Tensor,
    mu: torch.Tensor,
    logvar: torch.Tensor,
    seed: torch.Tensor,
    reduction: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of mu and logvar; grad_z is None where z was not used."""
    grad_mu, grad_logvar = gaussian_kl_loss_backward(grad_kl, mu, logvar, reduction)
    if grad_z is None:
        return grad_mu, grad_logvar
    return grad_z + grad_mu, reparameterize_backward(grad_z, logvar, seed) + grad_logvar
