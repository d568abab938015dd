# SPDX-License-Identifier: MIT
"""activation(batch_norm(conv2d(input))): PyTorch's convolution, then the fused batch_norm_act."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from genimg_fast.ops._autocast import to_autocast_dtype
from genimg_fast.ops._convolution import check_arguments, pair
from genimg_fast.ops.batch_norm_act import batch_norm_act
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
    op = "conv2d_bn_act"
    input, weight, bias = to_autocast_dtype(input, weight, bias)  # type: ignore[assignment]
    norm = {"running_mean": running_mean, "running_var": running_var, "bn_weight": bn_weight, "bn_bias": bn_bias}
    check_arguments(op, input, weight, bias, norm, training, groups, activation, transposed=False)
    stride, padding = pair(op, "stride", stride, 1), pair(op, "padding", padding, 0)
    raw = F.conv2d(input, weight, bias, stride, padding, pair(op, "dilation", dilation, 1), groups)
    if not training and running_mean is None:
        return activate(raw, activation, negative_slope)
    return batch_norm_act(
        raw, running_mean, running_var, bn_weight, bn_bias, training=training, momentum=momentum, eps=eps,
        activation=activation, negative_slope=negative_slope,
    )  # fmt: skip
