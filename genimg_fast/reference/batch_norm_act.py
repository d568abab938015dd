# SPDX-License-Identifier: MIT
"""activation(batch_norm(input)) in plain PyTorch (Ioffe and Szegedy 2015)."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from genimg_fast.reference.activation import activate, activate_backward


def batch_norm_act(
    input: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    normalized = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return activate(normalized, activation, negative_slope)


def batch_norm_act_backward(
    grad: torch.Tensor,
    input: torch.Tensor,
    mean: torch.Tensor,
    var: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    training: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of input, weight and bias.  In training, mean and var are those of input and are recomputed from it."""
    dims = [d for d in range(input.dim()) if d != 1]
    channels_of = [-1 if d == 1 else 1 for d in range(input.dim())]
    x = input.to(mean.dtype)
    if training:
        var, mean = torch.var_mean(x, dims, correction=0)
    inverse_std = (var + eps).rsqrt().view(channels_of)
    normalized = (x - mean.view(channels_of)) * inverse_std
    scaled = normalized if weight is None else normalized * weight.view(channels_of)
    affine = scaled if bias is None else scaled + bias.view(channels_of)

    dy = activate_backward(grad.to(mean.dtype), affine, activation, negative_slope)
    grad_weight, grad_bias = (dy * normalized).sum(dims), dy.sum(dims)
    if training:
        count = input.numel() // max(input.shape[1], 1)
        dy = dy - (grad_bias.view(channels_of) + normalized * grad_weight.view(channels_of)) / count
    grad_input = dy * inverse_std if weight is None else dy * inverse_std * weight.view(channels_of)
    return grad_input.to(input.dtype), grad_weight, grad_bias
