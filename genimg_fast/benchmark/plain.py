# SPDX-License-Identifier: MIT
"""Functions of `genimg_fast.functional` as PyTorch users write them: what eager and torch.compile are timed on."""

from __future__ import annotations

import torch
import torch.nn.functional as F

bce_loss = F.binary_cross_entropy
bce_with_logits_loss = F.binary_cross_entropy_with_logits


def gaussian_kl_loss(mu: torch.Tensor, logvar: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp())
    return kl.sum() / mu.shape[0] if reduction == "batchmean" else kl.mean()


def elbo_loss(
    recon: torch.Tensor, target: torch.Tensor, mu: torch.Tensor, logvar: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    reconstruction = F.binary_cross_entropy_with_logits(recon, target, reduction="sum") / recon.shape[0]
    kl = gaussian_kl_loss(mu, logvar, "batchmean")
    return reconstruction + kl, reconstruction, kl


def reparameterize(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    return mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)


def reparameterize_with_kl(
    mu: torch.Tensor, logvar: torch.Tensor, reduction: str = "mean"
) -> tuple[torch.Tensor, torch.Tensor]:
    return reparameterize(mu, logvar), gaussian_kl_loss(mu, logvar, reduction)


def batch_norm_act(input, running_mean, running_var, weight, bias, *, training: bool, activation: str) -> torch.Tensor:
    assert activation == "relu"
    return F.relu(F.batch_norm(input, running_mean, running_var, weight, bias, training), inplace=True)


def conv_transpose2d_bn_act(input, weight, *, stride: int, padding: int, output_padding: int = 0) -> torch.Tensor:
    return F.conv_transpose2d(input, weight, None, stride, padding, output_padding)


def conv2d_bn_act(input, weight, *, stride: int, padding: int) -> torch.Tensor:
    return F.conv2d(input, weight, None, stride, padding)
