# SPDX-License-Identifier: MIT
"""activation(batch_norm(conv_transpose2d(input))): checks the arguments of one block, and what its CPU kernels can compute."""

from __future__ import annotations

import torch

from genimg_fast._block import Block
from genimg_fast.ops import _check
from genimg_fast.ops._autocast import to_kernel_dtype
from genimg_fast.ops._convolution import check_arguments, pair, unsupported_on_cpu
from genimg_fast.ops._run_block import run_block


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
    nchw: bool = False,
) -> torch.Tensor:
    """`nchw`: the output in this order, whatever that of input, if the CUDA kernels serve the call and can."""
    op = "conv_transpose2d_bn_act"
    norm = {"running_mean": running_mean, "running_var": running_var, "bn_weight": bn_weight, "bn_bias": bn_bias}
    input, weight, bias = to_kernel_dtype(input, weight, bias, norm=norm.values())
    check_arguments(op, input, weight, bias, norm, training, groups, transposed=True)
    _check.normalization(op, training, momentum, eps)
    _check.activation(op, activation, negative_slope)
    stride, padding = pair(op, "stride", stride, 1), pair(op, "padding", padding, 0)
    output_padding, dilation = pair(op, "output_padding", output_padding, 0), pair(op, "dilation", dilation, 1)
    if any(o >= max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True)):
        raise ValueError(
            f"{op}: output_padding {output_padding} must be smaller than stride {stride} or dilation {dilation}"
        )
    block = Block(
        True, weight, bias, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps, stride, padding, output_padding, dilation, groups,
        activation, negative_slope,
    )  # fmt: skip
    return run_block(input, block, _unsupported, nchw)


def _unsupported(input: torch.Tensor, block: Block) -> str | None:
    if block.dilation != (1, 1):
        return f"dilation={block.dilation}; the kernels take 1"
    return unsupported_on_cpu(input, block)
