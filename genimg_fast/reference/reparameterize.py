# SPDX-License-Identifier: MIT
"""z ~ N(mu, exp(logvar)) as a differentiable function of mu and logvar (Kingma and Welling 2014), in plain PyTorch."""

from __future__ import annotations

import torch

from genimg_fast.reference.philox import normal


def reparameterize(mu: torch.Tensor, logvar: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """mu + exp(logvar / 2) * eps, eps drawn with `seed`, one int64."""
    return mu + torch.exp(0.5 * logvar) * normal(seed.to(mu.device), mu.shape).to(mu.dtype)


def reparameterize_backward(grad: torch.Tensor, logvar: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
    """The gradient of logvar; that of mu is `grad`."""
    return grad * 0.5 * torch.exp(0.5 * logvar) * normal(seed.to(logvar.device), logvar.shape).to(logvar.dtype)
