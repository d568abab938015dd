# SPDX-License-Identifier: MIT
"""Runs convolution blocks that stand one after the other: as a native chain where that serves them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from genimg_fast import _backend, _first_use, functional, ops
from genimg_fast._block import Block, Geometry
from genimg_fast.ops import convolution_block
from genimg_fast.ops._autocast import (
    autocasts,
    convolution_dtype,
    half_in_float32,
    kernel_dtype,
    replaces_half_type,
    to_kernel_dtype,
)
from genimg_fast.ops._check import HALF_TYPES
from genimg_fast.ops._convolution import records_gradient
from genimg_fast.ops._in_float32 import run_in_float32
from genimg_fast.ops._memory_order import Reordered, memory_format, to_channels_last, to_nchw
from genimg_fast.ops._speed import resampling_pays, slower, slower_chain
from genimg_fast.ops.block_chain import block_chain
from genimg_fast.ops.convolution_chain import convolution_chain


def run_blocks(input: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
    """Each block in turn, if any; those that the native chain serves run together."""
    if not blocks:
        return input
    if half_in_float32(input):
        if all(_is_of_dtype(block, input.dtype) for block in blocks):
            return run_in_float32(input, blocks, run_blocks)
        return block_by_block(input, blocks)  # the function of a block tells what does not fit
    if not may_chain(input):
        return _on_cuda(input, blocks) if may_chain_on_cuda(input, blocks) else block_by_block(input, blocks)
    runs = native_runs(input, blocks)
    # not of a frozen part of what trains: images come in many sizes there, and a moving average may move its weights in each step
    keeps_packed = len(runs) == 1 or not any(map(_records, blocks))
    for served, _, run in runs:
        input = _run(input, run, keeps_packed) if served else block_by_block(input, run)
    return input


def _is_of_dtype(block: Block, dtype: torch.dtype) -> bool:
    """As PyTorch demands it: a normalisation may have float32."""
    of_convolution = all(t is None or t.dtype is dtype for t in (block.weight, block.bias))
    return of_convolution and all(t is None or t.dtype in (dtype, torch.float32) for t in block.norm)


def _records(block: Block) -> bool:
    return records_gradient(*block.parameters)


def native_runs(input: torch.Tensor, blocks: Sequence[Block]) -> list[tuple[bool, tuple[int, ...], list[Block]]]:
    """The blocks cut into runs: whether the native chain serves each, the shape of its input, and its blocks.

    Blocks that no gradient reaches, such as those of a frozen encoder, are runs of their own: they keep nothing for backward.
    """
    records = records_gradient(input)
    heed_speed = _backend.current_backend() == "auto"
    runs: list[tuple[bool, bool, tuple[int, ...], list[Block]]] = []
    shape: tuple[int, ...] = tuple(input.shape)
    dtype, half = kernel_dtype(input), replaces_half_type(input)
    for block in blocks:
        records = records or _records(block)
        served = _serves(dtype, shape, block) and not (heed_speed and slower(block, shape, records, half))
        if not runs or runs[-1][:2] != (served, records):
            runs.append((served, records, shape, []))
        runs[-1][3].append(block)
        shape = block.output_shape(shape)
    return [
        (served and not (heed_speed and slower_chain(input, run, first, records, half)), first, run)
        for served, records, first, run in runs
    ]


def may_chain_on_cuda(input: torch.Tensor, blocks: Sequence[Block]) -> bool:
    """Not in inference without gradients, where there is less to gain: a `Sampler` captures the whole pass."""
    parameters = (t for block in blocks for t in block.parameters)
    return (
        not torch.compiler.is_compiling()
        and _may_run_on_cuda(input)
        and (any(block.training for block in blocks) or records_gradient(input, *parameters))
    )


def _may_run_on_cuda(input: torch.Tensor, *others: torch.Tensor) -> bool:
    return (
        isinstance(input, torch.Tensor)
        and input.is_cuda
        and input.dim() == 4
        and _backend.current_backend() != "reference"
        and not _backend.inside_func_transform()  # where no memory order can be asked for
        and _backend.why_not_native(input, *others) is None
    )


def _on_cuda(input: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
    """Each block in turn; those that the CUDA kernels serve run together."""
    given, chained = input, False
    runs: list[tuple[bool, list[Block]]] = []
    (input,) = to_kernel_dtype(input)  # type: ignore[assignment]
    shape: tuple[int, ...] = tuple(input.shape)
    casts = autocasts(input)
    native = _backend.current_backend() == "native"
    allows_tf32 = input.dtype is torch.float32 and convolution_block.allows_tf32()
    for block in blocks:
        if casts:
            weight, bias = to_kernel_dtype(block.weight, block.bias)
            block = block._replace(weight=weight, bias=bias)  # type: ignore[arg-type]
        served, shape = _sizes_served_on_cuda(shape, _sizes(block), input.dtype, native, allows_tf32)
        served = served and _tensors_served_on_cuda(input, block)
        served = served and (native or not _first_use.why_distrusted(block.op, input))
        if not runs or runs[-1][0] != served:
            runs.append((served, []))
        runs[-1][1].append(block)
    put_back = torch.channels_last not in (memory_format(given), memory_format(blocks[-1].weight))
    for i, (served, run) in enumerate(runs):
        if served:
            for block in run:
                _backend.record_native(block.op)
            input = convolution_chain(_for_kernels(input, run), run, nchw=put_back and i + 1 == len(runs))
        else:
            input = block_by_block(input, run)
        chained = chained or served
    return to_nchw(input) if chained and put_back else input


def _for_kernels(input: torch.Tensor, run: list[Block]) -> torch.Tensor:
    """In the order of the CUDA kernels, and its gradient in the one that PyTorch gives it."""
    keeps_order = memory_format(input) is torch.contiguous_format and not gives_channels_last(run)
    return Reordered.apply(input) if keeps_order and input.requires_grad else to_channels_last(input)


class _Sized(NamedTuple):
    """A weight of which only the sizes are asked for."""

    shape: torch.Size

    def numel(self) -> int:
        return self.shape.numel()


def _sizes(block: Block) -> Block:
    """What of a block `_sizes_served_on_cuda` depends on: it can be hashed, and holds no tensor."""
    weight: Any = _Sized(block.weight.shape)
    return block._replace(
        weight=weight, bias=None, running_mean=None, running_var=None, bn_weight=None, bn_bias=None, momentum=0.0
    )


@functools.lru_cache(maxsize=1024)
def _sizes_served_on_cuda(
    shape: tuple[int, ...], block: Block, dtype: torch.dtype, native: bool, allows_tf32: bool
) -> tuple[bool, tuple[int, ...]]:
    """Whether the kernels serve blocks of these sizes on images of this shape, and the shape of what they make.

    Remembered: to find out takes as long as a kernel of a small image.
    """
    served = (
        _fits(shape, block)
        and convolution_block.unsupported(shape, dtype, block) is None
        and (native or convolution_block.slower(shape, dtype, block) is None)
    )
    return served, block.output_shape(shape)


def _tensors_served_on_cuda(input: torch.Tensor, block: Block) -> bool:
    """Whether the kernels serve the block's tensors, whatever their sizes are said to be elsewhere.

    Where they do not, the function of the block checks and decides.
    """
    if not _is_like(block.weight, input) or (block.bias is not None and not _is_like(block.bias, input)):
        return False
    if records_gradient(block.running_mean, block.running_var):  # which PyTorch refuses
        return False
    half, channels = input.dtype in HALF_TYPES, (block.out_channels,)
    for t in (block.bias, *block.norm):
        if t is not None and not (
            t.shape == channels and t.is_contiguous() and _is_like(t, input, or_float32=half and t is not block.bias)
        ):
            return False
    return True


def _is_like(t: torch.Tensor, input: torch.Tensor, or_float32: bool = False) -> bool:
    is_of_dtype = t.dtype is input.dtype or (or_float32 and t.dtype is torch.float32)
    return is_of_dtype and t.device == input.device and t.layout is torch.strided


def block_by_block(input: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
    given, laid_out, put_back = input, False, False
    for i, block in enumerate(blocks):
        if len(blocks) > 1 and _wants_channels_last(input, block):
            input, laid_out = to_channels_last(input), True
        if i + 1 == len(blocks):
            put_back = laid_out and torch.channels_last not in (memory_format(given), memory_format(block.weight))
        if put_back and block.transposed:  # the kernel of an image layer does it itself
            input = ops.conv_transpose2d_bn_act(input, **block.arguments(), nchw=True)  # type: ignore[arg-type]
        else:
            input = getattr(functional, block.op)(input, **block.arguments())
    return to_nchw(input) if put_back else input


def _wants_channels_last(input: torch.Tensor, block: Block) -> bool:
    """The CUDA kernels compute in this layout: from block to block the image stays in it."""
    return (
        _may_run_on_cuda(input, block.weight)
        and convolution_block.unsupported(input.shape, input.dtype, block) is None
        and convolution_block.slower(input.shape, input.dtype, block) is None
    )


def may_resample(input: torch.Tensor) -> bool:
    """Whether there are kernels that may serve a convolution and a resampling by two as one, on an input like this one."""
    return may_chain(input) or _may_run_on_cuda(input)


def resampling_serves(
    input: torch.Tensor,
    shape: Sequence[int],
    weight: Any,
    bias: torch.Tensor | None,
    geometry: Geometry,
    trains: bool,
) -> bool:
    """Whether they serve the two on images of this shape, and are faster so.

    Args:
        weight, bias: of the convolution.
        geometry: of the convolution that the two are: transposed after an upsampling, plain before a mean.
        trains: whether gradients are recorded, or statistics taken of the batch.
    """
    like = all(
        (t.dtype is input.dtype or autocasts(input)) and t.device == input.device and t.layout is torch.strided
        for t in (weight, bias)
        if t is not None
    )
    if not like or min(*shape, *weight.shape) == 0 or shape[1] != weight.shape[1]:
        return False
    if half_in_float32(input):  # whose blocks want weights of that type, and the one made of theirs has float32
        return False
    if bias is not None and bias.shape != weight.shape[:1]:
        return False
    native = _backend.current_backend() == "native"
    if not input.is_cuda:
        return native or resampling_pays(weight, shape, geometry, trains)
    channels = weight.shape[:2]
    sized: Any = _Sized(torch.Size((*(reversed(channels) if geometry.transposed else channels), 4, 4)))
    block = Block(
        **geometry._asdict(), weight=sized, bias=None, running_mean=None, running_var=None, bn_weight=None, bn_bias=None,
        training=False, momentum=0.0, eps=0.0, groups=1, activation="none", negative_slope=0.0,
    )  # fmt: skip
    dtype = convolution_dtype(input)
    serves = convolution_block.unsupported(shape, dtype, block) is None
    return serves and (native or convolution_block.slower(shape, dtype, block) is None)


def may_chain(input: torch.Tensor) -> bool:
    return (
        isinstance(input, torch.Tensor)
        and input.device.type == "cpu"
        and input.dim() == 4
        and _backend.current_backend() != "reference"
        and not _backend.inside_func_transform()
        and _backend.why_not_native(input, dtype=kernel_dtype(input)) is None
    )


def _serves(dtype: torch.dtype, shape: tuple[int, ...], block: Block) -> bool:
    """Whether the native chain serves the block.  Where it does not, the function of the block checks and decides."""
    for t in (block.weight, block.bias, *block.norm):
        if t is not None and not (t.dtype is dtype and t.is_cpu and t.layout is torch.strided):
            return False
    if records_gradient(block.running_mean, block.running_var):  # which PyTorch refuses
        return False
    return block.groups == 1 and block.dilation == (1, 1) and block.negative_slope >= 0 and _fits(shape, block)


def _fits(shape: tuple[int, ...], block: Block) -> bool:
    """Whether the sizes of a block's tensors go together, and with an input of this shape."""
    channels = (block.out_channels,)
    if (block.running_mean is None) != (block.running_var is None):
        return False
    if 0 in block.weight.shape or any(t is not None and t.shape != channels for t in (block.bias, *block.norm)):
        return False
    if shape[1] != block.weight.shape[0 if block.transposed else 1]:
        return False
    n, _, h, w = block.output_shape(shape)
    if min(shape) <= 0 or min(h, w) <= 0 or (block.training and (n * h * w == 1 or block.eps <= 0)):
        return False
    return block.output_padding == (0, 0) or all(o < s for o, s in zip(block.output_padding, block.stride, strict=True))


def _run(input: torch.Tensor, blocks: Sequence[Block], keeps_packed: bool) -> torch.Tensor:
    for block in blocks:
        _backend.record_native(block.op)
    dtype = convolution_dtype(input)
    (input,) = to_kernel_dtype(input)  # type: ignore[assignment]
    input = to_channels_last(input) if gives_channels_last(blocks) else input
    output = block_chain(input, blocks, keeps_packed)
    return output if output.dtype is dtype else output.to(dtype)


def gives_channels_last(blocks: Sequence[Block]) -> bool:
    """Whether the output is in that order whatever the input's: as in PyTorch, where a weight is."""
    return any(memory_format(block.weight) is torch.channels_last for block in blocks)
