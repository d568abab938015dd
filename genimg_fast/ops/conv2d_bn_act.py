# SPDX-License-Identifier: MIT
"""activation(batch_norm(conv2d(input))): a chain of one block on the CPU kernels, a block on the CUDA kernels.

Where the native kernels cannot or should not run, PyTorch's convolution is followed by the fused batch_norm_act.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from genimg_fast import _backend
from genimg_fast.ops import convolution_block
from genimg_fast.ops._autocast import to_autocast_dtype
from genimg_fast.ops._convolution import (
    check_arguments,
    check_batch_statistics,
    pair,
    records_gradient,
    slower,
    slower_chain,
    unsupported_on_cpu,
)
from genimg_fast.ops.batch_norm_act import batch_norm_act
from genimg_fast.ops.block_chain import block_chain
from genimg_fast.reference.activation import activate
from genimg_fast.reference.block_chain import Block


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
    check_arguments(op, input, weight, bias, norm, training, eps, groups, activation, transposed=False)
    stride, padding = pair(op, "stride", stride, 1), pair(op, "padding", padding, 0)
    dilation = pair(op, "dilation", dilation, 1)
    block = Block(
        False, weight, bias, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps, stride, padding, (0, 0), dilation, groups,
        activation, negative_slope,
    )  # fmt: skip
    if training:
        check_batch_statistics(op, block.output_shape(input.shape))
    on_cuda = input.device.type == "cuda"
    native = _backend.use_native(
        op,
        input,
        weight,
        bias,
        *norm.values(),
        unless=convolution_block.unsupported(input.shape, input.dtype, block)
        if on_cuda
        else _unsupported(input, block),
        slower=lambda: convolution_block.slower(input.shape, input.dtype, block) if on_cuda else _slower(input, block),
    )
    if native:
        return convolution_block.convolution_block(input, block) if on_cuda else block_chain(input, [block])
    raw = F.conv2d(input, weight, bias, stride, padding, dilation, groups)
    if not training and running_mean is None:
        return activate(raw, activation, negative_slope)
    return batch_norm_act(
        raw, running_mean, running_var, bn_weight, bn_bias, training=training, momentum=momentum, eps=eps,
        activation=activation, negative_slope=negative_slope,
    )  # fmt: skip


def _unsupported(input: torch.Tensor, block: Block) -> str | None:
    if reason := unsupported_on_cpu(input, block):
        return reason
    if min(block.output_shape(input.shape)[2:]) <= 0:
        return "the kernel is larger than the padded input"  # PyTorch raises
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


def _slower(input: torch.Tensor, block: Block) -> str | None:
    if input.dim() != 4:
        return None
    records = records_gradient(input, block.weight, block.bias, block.bn_weight, block.bn_bias)
    return slower(block, input.shape, records) or slower_chain(input, [block], input.shape, records)
