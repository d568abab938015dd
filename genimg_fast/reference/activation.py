# SPDX-License-Identifier: MIT
"""The activations that the fused ops take, by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def activate(x: torch.Tensor, activation: str, negative_slope: float) -> torch.Tensor:
    if activation == "relu":
        return F.relu(x)
    if activation == "leaky_relu":
        return F.leaky_relu(x, negative_slope)
    if activation == "tanh":
        return torch.tanh(x)
    if activation == "sigmoid":
        return torch.sigmoid(x)
    return x


def activate_backward(grad: torch.Tensor, x: torch.Tensor, activation: str, negative_slope: float) -> torch.Tensor:
    """The gradient of `activate` with respect to `x`, differentiable itself."""
    if activation == "relu":
        return grad.masked_fill(x <= 0, 0)
    if activation == "leaky_relu":
        return torch.where(x > 0, grad, grad * negative_slope)
    if activation == "tanh":
        return grad * (1 - torch.tanh(x).square())
    if activation == "sigmoid":
        y = torch.sigmoid(x)
        return grad * y * (1 - y)
    return grad
