# SPDX-License-Identifier: MIT
"""KL(N(mu, exp(logvar)) ‖ N(0, I)) in plain PyTorch (Kingma and Welling 2014, appendix B)."""

from __future__ import annotations

import torch


def reduce(values: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduces to "none", "mean" over all elements, "sum", or "batchmean": the sum divided by the size of dimension 0."""
    if reduction == "none":
        return values
    if reduction == "mean":
        return values.mean()
    if reduction == "batchmean" and values.dim():
        return values.sum() / values.shape[0]
    return values.sum()


def reduction_scale(values: torch.Tensor, reduction: str) -> float:
    """What the upstream gradient of a reduced value is multiplied with to become that of each element."""
    divisor = 1
    if reduction == "mean":
        divisor = values.numel()
    elif reduction == "batchmean" and values.dim():
        divisor = values.shape[0]
    return 1 / divisor if divisor else float("nan")


def gaussian_kl_loss(mu: torch.Tensor, logvar: torch.Tensor, reduction: str = "mean") -> torch.Tensor:
    return reduce(-0.5 * (1 + logvar - mu.pow(2) - logvar.exp()), reduction)


def gaussian_kl_loss_backward(
    grad: torch.Tensor, mu: torch.Tensor, logvar: torch.Tensor, reduction: str
) -> tuple[torch.Tensor, torch.Tensor]:
    grad = grad * reduction_scale(mu, reduction)
    return grad * mu, grad * 0.5 * (logvar.exp() - 1)
