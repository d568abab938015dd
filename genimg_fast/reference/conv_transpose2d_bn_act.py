# SPDX-License-Identifier: MIT
"""activation(batch_norm(conv_transpose2d(input))) in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from genimg_fast.reference.activation import activate


def conv_transpose2d_bn_act(
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
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
    dilation: int | tuple[int, int] = 1,
    activation: str = "none",
    negative_slope: float = 0.01,
) -> torch.Tensor:
    x = F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    if training or running_mean is not None:
        x = F.batch_norm(x, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps)
    return activate(x, activation, negative_slope)
