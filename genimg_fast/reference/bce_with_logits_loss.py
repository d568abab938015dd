# SPDX-License-Identifier: MIT
"""Binary cross-entropy of logits in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from genimg_fast.reference.gaussian_kl_loss import reduction_scale


def bce_with_logits_loss(
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    pos_weight: torch.Tensor | None = None,
    reduction: str = "mean",
) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(input, target, weight, pos_weight=pos_weight, reduction=reduction)


def bce_with_logits_loss_backward(
    grad: torch.Tensor,
    input: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    pos_weight: torch.Tensor | None,
    reduction: str,
) -> torch.Tensor:
    if pos_weight is None:
        derivative = torch.sigmoid(input) - target
    else:
        positive = pos_weight * target
        derivative = torch.sigmoid(input) * (positive + 1 - target) - positive
    grad = grad * reduction_scale(input, reduction) * derivative
    return grad if weight is None else grad * weight
