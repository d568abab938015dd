# SPDX-License-Identifier: MIT
"""activation(batch_norm(conv2d(input))): checks the arguments of one block, and what its CPU kernels can compute."""

from __future__ import annotations

import torch

from genimg_fast._block import Block
from genimg_fast.ops import _check
from genimg_fast.ops._autocast import to_kernel_dtype
from genimg_fast.ops._convolution import check_arguments, pair, records_gradient, unsupported_on_cpu
from genimg_fast.ops._run_block import run_block


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
    norm = {"running_mean": running_mean, "running_var": running_var, "bn_weight": bn_weight, "bn_bias": bn_bias}
    input, weight, bias = to_kernel_dtype(input, weight, bias, norm=norm.values())
    check_arguments(op, input, weight, bias, norm, training, groups, transposed=False)
    _check.normalization(op, training, momentum, eps)
    _check.activation(op, activation, negative_slope)
    stride, padding = pair(op, "stride", stride, 1), pair(op, "padding", padding, 0)
    dilation = pair(op, "dilation", dilation, 1)
    block = Block(
        False, weight, bias, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps, stride, padding, (0, 0), dilation, groups,
        activation, negative_slope,
    )  # fmt: skip
    return run_block(input, block, _unsupported)


def _unsupported(input: torch.Tensor, block: Block) -> str | None:
    if reason := unsupported_on_cpu(input, block):
        return reason
    if not _has_gradient_kernels(block) and records_gradient(
        input, block.weight, block.bias, block.bn_weight, block.bn_bias
    ):
        return f"dilation={block.dilation}; the kernels of the gradients take 1, or stride 1 and no padding beyond the kernel"
    return None


def _has_gradient_kernels(block: Block) -> bool:
    # is_mirrored() of csrc/cpu/convolution_layer.cpp
    kernel = block.weight.shape[2:]
    return block.dilation == (1, 1) or (
        block.stride == (1, 1) and all(block.padding[d] <= block.dilation[d] * (kernel[d] - 1) for d in (0, 1))
    )
