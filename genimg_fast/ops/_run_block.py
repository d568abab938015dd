# SPDX-License-Identifier: MIT
"""Runs one block: as a chain of one on the CPU kernels, as a block on the CUDA kernels, or by PyTorch.

Where the native kernels cannot or should not run, PyTorch's convolution is followed by the fused batch_norm_act.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from genimg_fast import _backend
from genimg_fast._block import Block
from genimg_fast.ops import convolution_block
from genimg_fast.ops._autocast import convolution_dtype, half_in_float32, replaces_half_type
from genimg_fast.ops._convolution import check_batch_statistics, records_gradient
from genimg_fast.ops._half_types import multiplies
from genimg_fast.ops._in_float32 import run_in_float32
from genimg_fast.ops._registration import why_not_differentiable
from genimg_fast.ops._speed import slower, slower_chain
from genimg_fast.ops.batch_norm_act import batch_norm_act
from genimg_fast.ops.block_chain import block_chain
from genimg_fast.reference.activation import activate


def run_block(
    input: torch.Tensor,
    block: Block,
    unsupported_on_cpu: Callable[[torch.Tensor, Block], str | None],
    nchw: bool = False,
) -> torch.Tensor:
    """The function called `block.op`, its arguments checked but for the size of the batch.

    Args:
        nchw: the output in this order, whatever that of input, if the CUDA kernels serve the call and can.
    """
    if block.training:
        check_batch_statistics(block.op, block.output_shape(input.shape))
    if half_in_float32(input):
        return run_in_float32(input, [block], lambda input, blocks: run_block(input, blocks[0], unsupported_on_cpu))
    norm = block.norm
    constant = why_not_differentiable(running_mean=block.running_mean, running_var=block.running_var)
    if input.device.type == "cuda":
        native = _backend.use_native(
            block.op, input, block.weight, block.bias, *norm,
            unless=constant or convolution_block.unsupported(input.shape, input.dtype, block),
            slower=lambda: convolution_block.slower(input.shape, input.dtype, block),
        )  # fmt: skip
        if native:
            return convolution_block.convolution_block(input, block, nchw)
    else:
        native = _backend.use_native(
            block.op, input, block.weight, block.bias, *norm,
            unless=constant or unsupported_on_cpu(input, block),
            slower=lambda: _slower_on_cpu(input, block),
        )  # fmt: skip
        dtype = convolution_dtype(input)
        if native:
            return block_chain(input, [block]).to(dtype)
        if input.dtype is not dtype:  # for autocast's, the kernels were offered float32
            if not multiplies(dtype):
                _backend.count_native_call()  # else the pass would be remembered as one to leave as it is
                with torch.autocast("cpu", enabled=False):
                    return _by_pytorch(input, block).to(dtype)
            # not left to autocast, which converts nothing under torch.vmap
            input, bias = input.to(dtype), None if block.bias is None else block.bias.to(dtype)
            block = block._replace(weight=block.weight.to(dtype), bias=bias)
    return _by_pytorch(input, block)


def _by_pytorch(input: torch.Tensor, block: Block) -> torch.Tensor:
    raw = block.geometry.convolve(input, block.weight, block.bias, block.groups)
    if not block.training and block.running_mean is None:
        return activate(raw, block.activation, block.negative_slope)
    return batch_norm_act(
        raw, *block.norm, training=block.training, momentum=block.momentum, eps=block.eps, activation=block.activation,
        negative_slope=block.negative_slope,
    )  # fmt: skip


def _slower_on_cpu(input: torch.Tensor, block: Block) -> str | None:
    records, half = records_gradient(input, *block.parameters), replaces_half_type(input)
    return slower(block, input.shape, records, half) or slower_chain(input, [block], input.shape, records, half)
