# SPDX-License-Identifier: MIT
"""Binary cross-entropy of probabilities in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def bce_loss(
    input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, reduction: str = "mean"
) -> torch.Tensor:
    return F.binary_cross_entropy(input, target, weight, reduction=reduction)


def bce_loss_backward(
    grad: torch.Tensor, input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, reduction: str
) -> torch.Tensor:
    """The gradient of `bce_loss` for input, whose own derivatives are PyTorch's at probabilities of 0 and 1 too."""
    code = ("none", "mean", "sum").index(reduction)
    return torch.ops.aten.binary_cross_entropy_backward(grad, input, target, weight, code)
