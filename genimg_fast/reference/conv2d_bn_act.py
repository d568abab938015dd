# SPDX-License-Identifier: MIT
"""activation(batch_norm(conv2d(input))) in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from genimg_fast.reference.activation import activate


def conv2d_bn_act(
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    running_mean: torch.Tensor | None = None,
    running_var: torch.Tensor | None = None,
    bn_weight: torch.Tensor | None = None,
    bn_bias: torch.Tensor | None = None,
    *,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    x = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if training or running_mean is not None:
        x = F.batch_norm(x, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    return activate(x, activation, negative_slope)


def convolution_backward(
    grad: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of conv2d for input, weight and bias where `wanted`; differentiable themselves."""
    mask = [wanted[0], wanted[1], bias is not None and wanted[2]]
    return torch.ops.aten.convolution_backward(
        grad,
        input,
        weight,
        None if bias is None else bias.shape,
        stride,
        padding,
        dilation,
        False,
        (0, 0),
        1,
        mask,
    )
