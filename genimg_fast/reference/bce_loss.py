# SPDX-License-Identifier: MIT
"""Binary cross-entropy of probabilities in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from genimg_fast.reference.gaussian_kl_loss import reduction_scale


def bce_loss(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, reduction: str = "mean"
) -> torch.Tensor:
    return F.binary_cross_entropy(input, target, weight, reduction=reduction)


def bce_loss_backward(
    grad: torch.Tensor, input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, reduction: str
) -> torch.Tensor:
    grad = grad * reduction_scale(input, reduction) * (input - target) / ((1 - input) * input).clamp(min=1e-12)
    return grad if weight is None else grad * weight
