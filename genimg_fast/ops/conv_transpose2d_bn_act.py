# SPDX-License-Identifier: MIT
"""activation(batch_norm(conv_transpose2d(input))): chooses the backend and ties the native ops to autograd.

Where the native kernels cannot or should not run, PyTorch's convolution is followed by the fused batch_norm_act.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from genimg_fast import _backend
from genimg_fast.ops import _check
from genimg_fast.ops._autocast import to_autocast_dtype
from genimg_fast.ops._convolution import (
    activate_backward_from_output,
    check_arguments,
    check_batch_statistics,
    memory_format,
    pair,
    records_gradient,
    slower,
    slower_chain,
)
from genimg_fast.ops._registration import register
from genimg_fast.ops.batch_norm_act import batch_norm_act, update_running_statistics
from genimg_fast.ops.block_chain import block_chain
from genimg_fast.reference.activation import activate, activate_backward
from genimg_fast.reference.batch_norm_act import batch_norm_act_backward
from genimg_fast.reference.block_chain import Block
from genimg_fast.reference.conv_transpose2d_bn_act import convolution_backward


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
    op = "conv_transpose2d_bn_act"
    input, weight, bias = to_autocast_dtype(input, weight, bias)  # type: ignore[assignment]
    norm = {"running_mean": running_mean, "running_var": running_var, "bn_weight": bn_weight, "bn_bias": bn_bias}
    check_arguments(op, input, weight, bias, norm, training, groups, activation, transposed=True)
    stride, padding = pair(op, "stride", stride, 1), pair(op, "padding", padding, 0)
    output_padding, dilation = pair(op, "output_padding", output_padding, 0), pair(op, "dilation", dilation, 1)
    if any(o >= max(s, d) for o, s, d in zip(output_padding, stride, dilation, strict=True)):
        raise ValueError(
            f"{op}: output_padding {output_padding} must be smaller than stride {stride} or dilation {dilation}"
        )
    if training and dilation == (1, 1):
        check_batch_statistics(op, _output_shape(input, weight, stride, padding, output_padding))

    block = Block(
        True, weight, bias, running_mean, running_var, bn_weight, bn_bias, training, momentum, eps, stride, padding, output_padding, dilation, groups,
        activation, negative_slope,
    )  # fmt: skip
    native = _backend.use_native(
        op,
        input,
        weight,
        bias,
        *norm.values(),
        unless=_unsupported(input, groups, dilation, negative_slope, norm),
        slower=_slower(input, block),
    )
    if native and input.device.type == "cpu":
        return block_chain(input, [block])
    has_norm = training or running_mean is not None
    if native and training:
        output, _, mean, var = torch.ops.genimg_fast.conv_transpose2d_bn_act_training(
            input, weight, bias, bn_weight, bn_bias, eps, stride, padding, output_padding,
            _check.ACTIVATIONS[activation], negative_slope,
        )  # fmt: skip
        if running_mean is not None and running_var is not None:
            count = output.numel() // output.shape[1]
            update_running_statistics(running_mean, running_var, mean, var, count, momentum)
        return output
    if native and not (has_norm and records_gradient(input, weight, bias, bn_weight, bn_bias)):
        return torch.ops.genimg_fast.conv_transpose2d_bn_act(
            input, weight, bias, *norm.values(), eps, stride, padding, output_padding,
            _check.ACTIVATIONS[activation], negative_slope,
        )  # fmt: skip
    if native:  # fixed statistics with gradients: the normalisation needs the convolution's output
        raw = torch.ops.genimg_fast.conv_transpose2d_bn_act(
            input, weight, bias, None, None, None, None, eps, stride, padding, output_padding,
            _check.ACTIVATIONS["none"], negative_slope,
        )  # fmt: skip
    else:
        raw = F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    if not has_norm:
        return activate(raw, activation, negative_slope)
    return batch_norm_act(
        raw, running_mean, running_var, bn_weight, bn_bias, training=training, momentum=momentum, eps=eps,
        activation=activation, negative_slope=negative_slope,
    )  # fmt: skip


def _unsupported(input, groups, dilation, negative_slope, norm) -> str | None:
    if groups != 1:
        return f"groups={groups}; the kernels take 1"
    if dilation != (1, 1):
        return f"dilation={dilation}; the kernels take 1"
    if input.dim() != 4:
        return "unbatched input; the kernels take (N, C, H, W)"
    if negative_slope < 0:
        return "a negative negative_slope: the backward pass reads the branch off the sign of the output"
    if input.device.type == "cpu" and any(t is not None and t.dtype != input.dtype for t in norm.values()):
        return "batch normalisation in another dtype than input"
    return None


def _slower(input: torch.Tensor, block: Block) -> str | None:
    if input.device.type == "cuda":
        return "cuDNN's tensor cores outrun the plain CUDA kernel"
    if input.dim() != 4:
        return None
    records = records_gradient(input, block.weight, block.bias, block.bn_weight, block.bn_bias)
    return slower(block, input.shape, records) or slower_chain(input, [block], input.shape, records)


def _output_shape(input, weight, stride, padding, output_padding):
    size = [
        (input.shape[d + 2] - 1) * stride[d] - 2 * padding[d] + weight.shape[d + 2] + output_padding[d] for d in (0, 1)
    ]
    return input.shape[0], weight.shape[1], *size


def _fake(
    input,
    weight,
    bias,
    running_mean,
    running_var,
    bn_weight,
    bn_bias,
    eps,
    stride,
    padding,
    output_padding,
    *activation,
):
    shape = _output_shape(input, weight, stride, padding, output_padding)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input))


def _fake_training(input, weight, bias, bn_weight, bn_bias, eps, stride, padding, output_padding, *activation):
    output = _fake(input, weight, None, None, None, None, None, eps, stride, padding, output_padding)
    raw = torch.empty(output.shape, dtype=input.dtype, device=input.device, memory_format=torch.channels_last)
    statistics_dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    mean = torch.empty(weight.shape[1], dtype=statistics_dtype, device=input.device)
    return output, raw, mean, torch.empty_like(mean)


def _setup_context(ctx, inputs, output):
    (input, weight, bias, running_mean, _, _, _, _, ctx.stride, ctx.padding, ctx.output_padding, code, ctx.slope) = (
        inputs
    )
    ctx.activation, ctx.has_norm = _check.activation_name(code), running_mean is not None
    ctx.save_for_backward(input, weight, bias, output)


def _backward(ctx, grad):
    if ctx.has_norm:
        raise RuntimeError("conv_transpose2d_bn_act: the folded operator has no gradient; call genimg_fast.functional")
    input, weight, bias, output = ctx.saved_tensors
    geometry = (ctx.stride, ctx.padding, ctx.output_padding)
    if torch.is_grad_enabled():
        raw = F.conv_transpose2d(input, weight, bias, *geometry)
        grad = activate_backward(grad, raw, ctx.activation, ctx.slope)
    else:
        grad = activate_backward_from_output(grad, output, ctx.activation, ctx.slope)
    grads = convolution_backward(grad, input, weight, bias, *geometry, ctx.needs_input_grad[:3])
    return *grads, *[None] * 10


def _setup_context_training(ctx, inputs, output):
    input, weight, bias, bn_weight, bn_bias, ctx.eps, ctx.stride, ctx.padding, ctx.output_padding, code, ctx.slope = (
        inputs
    )
    _, raw, mean, var = output
    ctx.activation = _check.activation_name(code)
    ctx.mark_non_differentiable(raw, mean, var)
    ctx.save_for_backward(input, weight, bias, bn_weight, bn_bias, raw, mean, var)


def _backward_training(ctx, grad, *_):
    input, weight, bias, bn_weight, bn_bias, raw, mean, var = ctx.saved_tensors
    geometry = (ctx.stride, ctx.padding, ctx.output_padding)
    if torch.is_grad_enabled():
        raw = F.conv_transpose2d(input, weight, bias, *geometry)
        grad_raw, grad_bn_weight, grad_bn_bias = batch_norm_act_backward(
            grad, raw, mean, var, bn_weight, bn_bias, ctx.eps, ctx.activation, ctx.slope, True
        )
    else:
        grad_raw, grad_bn_weight, grad_bn_bias = torch.ops.genimg_fast.batch_norm_act_backward(
            grad, raw, mean, var, bn_weight, bn_bias, ctx.eps, _check.ACTIVATIONS[ctx.activation], ctx.slope, True
        )
    grads = convolution_backward(grad_raw, input, weight, bias, *geometry, ctx.needs_input_grad[:3])
    given = (None if t is None else g for t, g in ((bn_weight, grad_bn_weight), (bn_bias, grad_bn_bias)))
    return *grads, *given, *[None] * 6


register("conv_transpose2d_bn_act", _fake, backward=_backward, setup_context=_setup_context)
register(
    "conv_transpose2d_bn_act_training",
    _fake_training,
    backward=_backward_training,
    setup_context=_setup_context_training,
)
