# SPDX-License-Identifier: MIT
"""One convolution block on CUDA: which kernels serve it, and their tie to autograd.

Tensor cores multiply half types, and float32 where PyTorch may do so too (TF32).  Without them a transposed convolution has
the plain kernel, and a convolution cuDNN's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from genimg_fast import _backend, _extension
from genimg_fast._block import Block, Geometry
from genimg_fast.backends import cuda
from genimg_fast.ops import _check, _convolution, _packed
from genimg_fast.ops._convolution import activate_backward_from_output, records_gradient
from genimg_fast.ops._memory_order import memory_format, to_nchw
from genimg_fast.ops._registration import register, wanted
from genimg_fast.ops.batch_norm_act import batch_norm_act, update_running_statistics
from genimg_fast.reference.activation import activate_backward
from genimg_fast.reference.batch_norm_act import batch_norm_act_backward


@_extension.constant_to_compile  # torch.compile cannot read the setting
def allows_tf32() -> bool:
    """Whether tensor cores may serve float32."""
    return torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def why_not_tensor_cores(dtype: torch.dtype, weight: torch.Tensor, transposed: bool) -> str | None:
    if dtype == torch.float32 and not allows_tf32():
        return "float32 with TF32 not allowed (torch.backends.cudnn.conv.fp32_precision)"
    channels, kernel = weight.shape[0 if transposed else 1], weight.shape[2:]
    if dtype != torch.float32 and channels % 2 != 0 and channels > 15:
        return f"{channels} input channels; the tensor-core kernels take an even number, or up to 15"
    if max(kernel) > 16 or kernel.numel() > 64:
        return f"kernel {tuple(kernel)}; the tensor-core kernels take up to 64 taps, 16 in a row"
    return None


def tensor_cores(input: torch.Tensor, weight: torch.Tensor, transposed: bool) -> tuple[int, int]:
    """Which of them may serve, and by which tile: tensor_cores and tile of csrc/ops/convolution_block.cpp."""
    if why_not_tensor_cores(input.dtype, weight, transposed):
        return 0, -1
    return 2 if cuda.allow_wgmma else 1, cuda._tile


def unsupported(shape: Sequence[int], dtype: torch.dtype, block: Block) -> str | None:
    """Why the CUDA kernels cannot serve a block on an input of this shape, or None."""
    if reason := _convolution.unsupported(shape, block):
        return reason
    if block.transposed:
        return f"dilation={block.dilation}; the kernels take 1" if block.dilation != (1, 1) else None
    return why_not_tensor_cores(dtype, block.weight, False)


def slower(shape: Sequence[int], dtype: torch.dtype, block: Block) -> str | None:
    """Why cuDNN's convolution and one fused pass after it are expected to be faster, or None.

    The tensor-core kernels are made for the shapes below.  No measurement stands behind this rule yet.
    """
    reason = why_not_tensor_cores(dtype, block.weight, block.transposed)
    if reason:
        return f"cuDNN outruns the plain CUDA kernel; {reason}"
    kernel = tuple(block.weight.shape[2:])
    if len(shape) != 4 or tuple(shape[2:]) == (1, 1) or block.covers(shape):
        return None
    made_for = _TRANSPOSED if block.transposed else _PLAIN
    if (kernel, block.stride) in made_for:
        return None
    return f"the tensor-core kernels are not made for kernel {kernel}, stride {block.stride}"


_TRANSPOSED = {((k, k), (s, s)) for k, s in ((4, 2), (2, 2), (3, 2), (5, 2))}
_PLAIN = {((k, k), (s, s)) for k, s in ((4, 2), (3, 1))}


def convolution_block(input: torch.Tensor, block: Block, nchw: bool = False) -> torch.Tensor:
    """The block on the CUDA kernels, which must serve it: see `unsupported`.

    Args:
        nchw: the output in this order, whatever that of input and weight; not heeded where normalisation is a pass of its own.
    """
    weight, bias, codes = block.weight, block.bias, block.geometry.codes()
    norm = block.norm
    allowed = tensor_cores(input, weight, block.transposed)
    epilogue = (_check.ACTIVATIONS[block.activation], block.negative_slope, *allowed)
    if block.training:
        output, _, mean, var = torch.ops.genimg_fast.convolution_block_training(
            input, weight, bias, block.bn_weight, block.bn_bias, block.eps, codes, *epilogue
        )
        if block.running_mean is not None and block.running_var is not None:
            count = output.numel() // output.shape[1]
            update_running_statistics(block.running_mean, block.running_var, mean, var, count, block.momentum)
        return output
    if records_gradient(input, weight, bias, block.bn_weight, block.bn_bias):
        _packed.forget([block.weight])  # what changes with every step is not worth its memory
        if block.running_mean is None:
            return _inference(input, weight, None, bias, (None,) * 4, 0.0, codes, *epilogue, False if nchw else None)
        raw = _inference(input, weight, None, bias, (None,) * 4, 0.0, codes, 0, 0.0, *allowed)
        return batch_norm_act(
            raw, *norm, eps=block.eps, activation=block.activation, negative_slope=block.negative_slope
        )
    packed = _packed_weight(input, weight, codes) if allowed[0] and _packed.keeps_on_cuda() else None
    if block.running_mean is None:
        norm = (None,) * 4  # type: ignore[assignment]
    return _inference(input, weight, packed, bias, norm, block.eps, codes, *epilogue, False if nchw else None)


def _inference(
    input, weight, packed, bias, norm, eps, codes, activation, slope, tensor_cores, tile, channels_last=None
) -> torch.Tensor:
    return torch.ops.genimg_fast.convolution_block(
        input, weight, packed, bias, *norm, eps, codes, activation, slope, tensor_cores, tile, channels_last
    )


def _packed_weight(input: torch.Tensor, weight: torch.Tensor, codes: list[int]) -> torch.Tensor | None:
    def pack(which: list[int]) -> list[torch.Tensor]:
        return [torch.ops.genimg_fast.convolution_block_pack(input, weight, codes)]

    kept = _packed.keep([weight], [(*codes, *input.shape[2:])], pack)
    return kept[0] if kept else None


# ---- Fakes and gradients.


def _empty(input: torch.Tensor, weight: torch.Tensor, codes: Sequence[int], channels_last: bool | None = None):
    """In the order of input and weight if not told, as wants_channels_last() of csrc/ops/convolution_block_cuda.cpp."""
    if channels_last is None:
        channels_last = torch.channels_last in (memory_format(input), memory_format(weight))
    format = torch.channels_last if channels_last else torch.contiguous_format
    shape = Geometry.of(codes).output_shape(input, weight)
    return torch.empty(shape, dtype=input.dtype, device=input.device, memory_format=format)


def _fake(
    input, weight, packed, bias, mean, var, bn_weight, bn_bias, eps, geometry, code, slope, tensor_cores, tile,
    channels_last=None,
):  # fmt: skip
    return _empty(input, weight, geometry, channels_last)


def _fake_training(input, weight, bias, bn_weight, bn_bias, eps, geometry, *_):
    raw = _empty(input, weight, geometry, channels_last=True)
    mean = torch.empty(raw.shape[1], dtype=torch.float32, device=input.device)
    return _empty(input, weight, geometry), raw, mean, torch.empty_like(mean)


def _fake_training_(input, weight, bias, bn_weight, bn_bias, running_mean, running_var, momentum, *more):
    _, raw, mean, var = _fake_training(input, weight, bias, bn_weight, bn_bias, *more)
    return torch.empty_like(raw), raw, mean, var


def _fake_pack(input, weight, geometry):
    return weight.new_empty(torch.library.get_ctx().new_dynamic_size())


def convolution_backward(
    grad: torch.Tensor,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    geometry: Geometry,
    wants: Sequence[bool],
    tensor_cores: int,
    tile: int,
) -> tuple[torch.Tensor | None, ...]:
    """The gradients of the convolution for input, weight and bias, those that `wants` asks for.

    Which kernels make them is decided here.  The gradient for input is the other of the two convolutions with the same weight.
    No measurement stands behind the choice yet: ours for input, since they read the packed weight alone; cuDNN's for the
    weight.
    """
    wants_input, wants_weight, wants_bias = wants
    channels_last, was_channels_last = None, torch.channels_last in (memory_format(input), memory_format(weight))
    if (
        tensor_cores
        and torch.channels_last in (memory_format(grad), memory_format(input))
        and not _backend.is_batched(grad)
    ):
        channels_last = True
        # Once, and both: else the gradient of an image would be converted for each product and what comes of it back again,
        # and cuDNN would convert a whole layer's gradient to the order of an image.
        grad, input = (t.contiguous(memory_format=torch.channels_last) for t in (grad, input))
    grad_input = None
    if wants_input and not torch.is_grad_enabled() and tensor_cores and _has_adjoint(grad, weight, geometry):
        adjoint = _adjoint(geometry, input, weight).codes()
        grad_input = _inference(
            grad, weight, None, None, (None,) * 4, 0.0, adjoint, 0, 0.0, tensor_cores, tile, channels_last
        )
        wants_input = False
    made: tuple[torch.Tensor | None, ...] = (None, None, None)
    if wants_input or wants_weight or wants_bias:
        made = torch.ops.aten.convolution_backward(
            grad, input, weight, None if bias is None else bias.shape, geometry.stride, geometry.padding, geometry.dilation,
            geometry.transposed, geometry.output_padding, 1, [wants_input, wants_weight, wants_bias],
        )  # fmt: skip
    grad_input = made[0] if grad_input is None else grad_input
    if grad_input is not None and channels_last and not was_channels_last:
        grad_input = to_nchw(grad_input)  # as PyTorch's: users take views of it
    return grad_input, made[1], made[2]


def _convolution_backward(ctx: Any, grad, input, weight, bias, bias_at: int) -> tuple[torch.Tensor | None, ...]:
    wants = wanted(ctx)
    return convolution_backward(
        grad, input, weight, bias, Geometry.of(ctx.geometry), (*wants[:2], wants[bias_at]), ctx.tensor_cores, ctx.tile
    )


def _has_adjoint(grad: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> bool:
    return geometry.dilation == (1, 1) and why_not_tensor_cores(grad.dtype, weight, not geometry.transposed) is None


def _adjoint(geometry: Geometry, input: torch.Tensor, weight: torch.Tensor) -> Geometry:
    """The convolution that leads from the output's shape back to the input's."""
    missing = [0, 0]
    if not geometry.transposed:  # rows and columns that no kernel of the convolution reached
        for d in (0, 1):
            reached = input.shape[d + 2] + 2 * geometry.padding[d] - weight.shape[d + 2]
            missing[d] = reached % geometry.stride[d]
    return Geometry(not geometry.transposed, geometry.stride, geometry.padding, (missing[0], missing[1]), (1, 1))


def _setup_context(ctx, inputs, output):
    (
        input, weight, _, bias, running_mean, _, _, _, _, ctx.geometry, code, ctx.slope, ctx.tensor_cores, ctx.tile, _,
    ) = inputs  # fmt: skip
    ctx.activation, ctx.has_norm = _check.name_of(code, _check.ACTIVATIONS), running_mean is not None
    ctx.save_for_backward(input, weight, bias, output)


def _backward(ctx, grad):
    if ctx.has_norm:
        raise RuntimeError("convolution_block: the folded operator has no gradient; call genimg_fast.functional")
    input, weight, bias, output = ctx.saved_tensors
    if torch.is_grad_enabled():
        raw = Geometry.of(ctx.geometry).convolve(input, weight, bias)
        grad = activate_backward(grad, raw, ctx.activation, ctx.slope)
    else:
        grad = activate_backward_from_output(grad, output, ctx.activation, ctx.slope)
    grad_input, grad_weight, grad_bias = _convolution_backward(ctx, grad, input, weight, bias, 3)
    return grad_input, grad_weight, None, grad_bias, *[None] * 11


def _setup_context_training(ctx, inputs, output):
    (
        input, weight, bias, bn_weight, bn_bias, ctx.eps, ctx.geometry, code, ctx.slope, ctx.tensor_cores, ctx.tile,
    ) = inputs  # fmt: skip
    _, raw, mean, var = output
    ctx.activation = _check.name_of(code, _check.ACTIVATIONS)
    ctx.mark_non_differentiable(raw, mean, var)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, weight, bias, bn_weight, bn_bias, raw, mean, var)


def _backward_training(ctx, grad, *_):
    if grad is None:
        return (None,) * 11
    input, weight, bias, bn_weight, bn_bias, raw, mean, var = ctx.saved_tensors
    if torch.is_grad_enabled():
        raw = Geometry.of(ctx.geometry).convolve(input, weight, bias)
        grad_raw, grad_bn_weight, grad_bn_bias = batch_norm_act_backward(
            grad, raw, mean, var, bn_weight, bn_bias, ctx.eps, ctx.activation, ctx.slope, True
        )
    else:
        grad_raw, grad_bn_weight, grad_bn_bias = torch.ops.genimg_fast.batch_norm_act_backward(
            grad, raw, mean, var, bn_weight, bn_bias, ctx.eps, _check.ACTIVATIONS[ctx.activation], ctx.slope, True
        )
    grads = _convolution_backward(ctx, grad_raw, input, weight, bias, 2)
    given = (None if t is None else g for t, g in ((bn_weight, grad_bn_weight), (bn_bias, grad_bn_bias)))
    return *grads, *given, *[None] * 6


register("convolution_block", _fake, backward=_backward, setup_context=_setup_context)
register(
    "convolution_block_training", _fake_training, backward=_backward_training, setup_context=_setup_context_training
)
register("convolution_block_training_", _fake_training_)
register("convolution_block_pack", _fake_pack)
