# SPDX-License-Identifier: MIT
"""What the two convolution ops share: the checks of their arguments, and parts of their fakes and backwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Any

import torch

from genimg_fast.ops import _check
from genimg_fast.reference.block_chain import Block, output_size


def pair(op: str, name: str, value: int | Sequence[int], minimum: int) -> tuple[int, int]:
    """An int or two of them as (height, width), like torch's own arguments."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2 or any(not isinstance(v, (int, Integral)) or v < minimum for v in values):
        raise ValueError(f"{op}: {name} must be one or two integers >= {minimum}, got {value!r}")
    return values  # type: ignore[return-value]


def check_arguments(
    op: str,
    input: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: dict[str, torch.Tensor | None],
    training: bool,
    eps: float,
    groups: int,
    activation: str,
    *,
    transposed: bool,
) -> None:
    """All checks but those of the geometry.  `norm`: running_mean, running_var, bn_weight and bn_bias by name."""
    _check.tensor(op, input=input, weight=weight, bias=bias, **norm)
    _check.required(op, weight=weight)
    _check.same_dtype(op, input=input, weight=weight, bias=bias)
    if weight.dim() != 4:
        raise ValueError(f"{op}: weight must have 4 dimensions, got shape {tuple(weight.shape)}")
    if input.dim() not in (3, 4):
        raise ValueError(f"{op}: input must be (N, C, H, W) or (C, H, W), got shape {tuple(input.shape)}")
    in_channels, out_channels = (
        (weight.shape[0], weight.shape[1] * groups) if transposed else (weight.shape[1] * groups, weight.shape[0])
    )
    if input.shape[-3] != in_channels:
        raise ValueError(
            f"{op}: input has {input.shape[-3]} channels but weight of shape {tuple(weight.shape)} takes {in_channels}"
        )
    for name, value in {"bias": bias, **norm}.items():
        _check.shape(op, name, value, (out_channels,), "one value an output channel")
    _check.dtype_or_float32(op, input, **norm)
    if (norm["running_mean"] is None) != (norm["running_var"] is None):
        raise ValueError(f"{op}: running_mean and running_var must be given together or not at all")
    normalizes = training or norm["running_mean"] is not None
    if normalizes:
        _check.eps(op, eps, training)
    if normalizes and input.dim() == 3:
        raise ValueError(
            f"{op}: batch normalisation needs a batch: input must be (N, C, H, W), got {tuple(input.shape)}"
        )
    _check.choice(op, "activation", activation, tuple(_check.ACTIVATIONS))


def unsupported(shape: Sequence[int], block: Block) -> str | None:
    """What the kernels of no device compute."""
    if block.groups != 1:
        return f"groups={block.groups}; the kernels take 1"
    if len(shape) != 4:
        return "unbatched input; the kernels take (N, C, H, W)"
    # by whose sizes they would divide; PyTorch refuses such tensors, or gives an empty one
    if block.weight.numel() == 0:
        return "a weight without elements"
    if shape[2] == 0 or shape[3] == 0:
        return "images without pixels"
    height, width = output_size(block, shape, block.weight.shape)
    if height <= 0 or width <= 0:
        return "no output: padding cuts it off" if block.transposed else "the kernel is larger than the padded input"
    if block.negative_slope < 0:
        return "a negative negative_slope: the backward pass reads the branch off the sign of the output"
    return None


def unsupported_on_cpu(input: torch.Tensor, block: Block) -> str | None:
    norm = (block.running_mean, block.running_var, block.bn_weight, block.bn_bias)
    if any(t is not None and t.dtype != input.dtype for t in norm):
        return "batch normalisation in another dtype than input"
    return unsupported(input.shape, block)


def check_batch_statistics(op: str, output_shape: Sequence[int]) -> None:
    """Batch statistics need several values a channel."""
    n, _, h, w = output_shape
    if (n, h, w) == (1, 1, 1):
        raise ValueError(
            f"{op}: Expected more than 1 value per channel when training, got output size {tuple(output_shape)}"
        )


def slower(block: Block, input_shape: Sequence[int], records: bool) -> str | None:
    """Why PyTorch's convolution is faster than the CPU kernels for a block; `records`: gradients will be wanted.

    From measurements on AVX-512 against oneDNN.  What the kernels are made for is kernel 4 or 5 with stride 2, kernel 3 or 4 with
    stride 1, a few output channels, images of one pixel, and large weights on few pixels; elsewhere they have plain sums alone.
    """
    kernel, stride = tuple(block.weight.shape[2:]), block.stride
    pixels = _pixels(block, input_shape)
    one_pixel = pixels == input_shape[0] if block.transposed else kernel == tuple(input_shape[2:])
    if one_pixel and (max(kernel) > 1 or not records):
        return None
    # the weight first: torch.compile makes a graph of its own for each answer about a number of pixels that varies
    if records and kernel == (3, 3) and block.weight.numel() >= _LARGE_WEIGHT // 2 and pixels <= _VERY_FEW_PIXELS:
        return f"PyTorch is faster at kernel {kernel} on {pixels} pixels with so large a weight"
    if _made_for(block, records):
        return None
    if records and max(kernel) > 1 and pixels <= _FEW_PIXELS and block.weight.numel() >= _LARGE_WEIGHT:
        return None
    stays_packed = not records and not block.transposed and max(kernel) > 1
    if stays_packed and (pixels <= _FEW_PIXELS or (kernel, stride) == ((3, 3), (2, 2))):
        return None
    if not block.transposed or records:
        return f"PyTorch is faster at kernel {kernel}, stride {stride}"
    if stride == (1, 1) or (max(kernel) > 4 and pixels >= 512):
        return f"PyTorch is faster at kernel {kernel}, stride {stride} on {pixels} pixels"
    return None


def _made_for(block: Block, records: bool) -> bool:
    kernel, stride = tuple(block.weight.shape[2:]), block.stride
    fewest = 2 * _FEW_CHANNELS if records else _FEW_CHANNELS
    if stride == (1, 1) and block.transposed:
        mirrored = kernel == (3, 3) or (kernel == (4, 4) and records)  # forward it pays on large images alone
        return mirrored and min(block.weight.shape[:2]) >= fewest
    if stride == (1, 1):
        out_channels, in_channels = block.weight.shape[:2]
        makes_images = out_channels <= _IMAGE_CHANNELS and in_channels >= _FEW_CHANNELS and max(kernel) > 1
        return kernel == (3, 3) or makes_images or (kernel == (4, 4) and in_channels >= fewest)
    if (kernel, stride) == ((5, 5), (2, 2)):
        return not records or max(block.weight.shape[:2]) >= fewest
    return (kernel, stride) == ((4, 4), (2, 2))


_FEWEST_MULTIPLY_ADDS = 12_000_000
"""Of a block in training, below which to set its gradients up from Python takes longer than PyTorch's kernels do; half as many in
each of two, whose setting up is one."""
_IMAGE_CHANNELS = 4
_FEW_CHANNELS = 16
"""At which PyTorch's kernels of the same vectors are about as fast."""
_FEW_PIXELS = 64
"""Of which PyTorch's preparations take longer than their convolution."""
_VERY_FEW_PIXELS = 16
"""Of which a kernel of 3 saves fewer products than it costs to transform so large a weight."""
_LARGE_WEIGHT = 1 << 19
"""Values that PyTorch reorders for each pass, and the kernels read where they lie."""
_PIXELS_TO_READ_A_WEIGHT = 80
"""Whose products take as long as to read the weight, which is what few pixels cost."""
_LARGE_BATCH = 1 << 15
"""Pixels from which on images no longer fit into the caches between two passes of PyTorch's."""


def slower_chain(input: torch.Tensor, blocks: Sequence[Block], shape: Sequence[int], records: bool) -> str | None:
    """Why PyTorch is faster for these blocks in turn, though not for each by itself.

    Args:
        input: of the whole pass, whose memory order the output takes over.
        shape: of the first block's input.
    """
    first, work, pixels = blocks[0], 0, _pixels(blocks[0], shape)
    kernel = first.weight.shape[2:]
    image_layer = not first.transposed and min(first.weight.shape[:2]) <= _IMAGE_CHANNELS and kernel != tuple(shape[2:])
    for block in blocks:
        fewest = _PIXELS_TO_READ_A_WEIGHT if max(block.weight.shape[2:]) > 1 else 0
        multiply_adds = block.weight.numel() * max(_pixels(block, shape), fewest)
        in_channels = block.weight.shape[0 if block.transposed else 1]
        # for whose gradients PyTorch prepares as long as we do
        strided = max(block.weight.shape[2:]) > 3 and block.stride != (1, 1) and in_channels > _IMAGE_CHANNELS
        work += max(multiply_adds, _FEWEST_MULTIPLY_ADDS) if strided else multiply_adds
        shape = block.output_shape(shape)
    if records and work * len(blocks) < _FEWEST_MULTIPLY_ADDS:
        return "so little work that to prepare for its gradients would take longer"
    lone = len(blocks) == 1 and memory_format(input) is torch.contiguous_format
    few_channels = max(first.weight.shape[:2]) <= _FEW_CHANNELS
    if lone and records and few_channels and kernel == (3, 3) and not (first.transposed or first.training):
        return "a lone layer of few channels: changing the memory order costs more than the kernels save"
    if lone and image_layer:
        made_image, few_taps = first.out_channels <= _IMAGE_CHANNELS, max(kernel) < 5
        if not records and (few_taps if made_image else pixels < _LARGE_BATCH):
            return "a lone layer on images: changing the memory order costs more than the kernel saves"
        if records and not made_image and kernel == (3, 3) and pixels < _LARGE_BATCH:
            return "a lone layer on images: changing the memory order costs more than the kernel saves"
    return None


def _pixels(block: Block, input_shape: Sequence[int]) -> int:
    """Of the smaller of input and output, about, in the batch."""
    n, _, h, w = input_shape
    return n * h * w if block.transposed else n * (h // block.stride[0]) * (w // block.stride[1])


def records_gradient(*tensors: torch.Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and _requires_grad(t) for t in tensors)


def _requires_grad(t: torch.Tensor) -> bool:
    while not t.requires_grad and torch._C._functorch.is_batchedtensor(t):  # by torch.vmap, which hides what it stacks
        if torch.compiler.is_compiling():  # who cannot unwrap it
            return True
        t = torch._C._functorch.get_unwrapped(t)
    return t.requires_grad


def running_updates(
    blocks: Sequence[Block], shape: Sequence[int], statistics: Sequence[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, float]]:
    """What `update_running_statistics` takes, of each block in training that has any.

    Args:
        shape: of the first block's input.
        statistics: mean and variance of the batch, of each block in training.
    """
    moments = iter(statistics)
    for block in blocks:
        shape = block.output_shape(shape)
        if block.training:
            mean, var = next(moments), next(moments)
            if block.running_mean is not None and block.running_var is not None:
                count = shape[0] * shape[2] * shape[3]
                yield block.running_mean, block.running_var, mean, var, count, block.momentum


def memory_format(input: torch.Tensor) -> torch.memory_format:
    """What torch's operators take for that of an image by its strides, and return: is_channels_last() of csrc/ops/tensor.h."""
    sizes, strides = input.shape, input.stride()
    least = 0
    if strides[1] == 0:
        return torch.contiguous_format
    for d in (1, 3, 2, 0):
        if sizes[d] == 0 or strides[d] < least or (d == 0 and least == strides[1]):
            return torch.contiguous_format
        least = strides[d] * sizes[d]
    return torch.channels_last


def to_channels_last(image: torch.Tensor) -> torch.Tensor:
    n, c, h, w = image.shape
    if h == w == 1:  # either layout is this one; only the strides tell
        return image.reshape(n, 1, 1, c).permute(0, 3, 1, 2)
    return image.contiguous(memory_format=torch.channels_last)


class Reordered(torch.autograd.Function):
    """`to_channels_last`, whose gradient is contiguous, as the image was: users take views of it, and F.instance_norm differentiates
    wrongly in another order than its input's."""

    @staticmethod
    def forward(ctx: Any, image: torch.Tensor) -> torch.Tensor:
        return to_channels_last(image)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return grad.contiguous()


def activate_backward_from_output(
    grad: torch.Tensor, output: torch.Tensor, activation: str, slope: float
) -> torch.Tensor:
    """The gradient from the activation's result alone: each of them tells on which branch, or how steep, it was."""
    if activation == "relu":
        return torch.ops.aten.threshold_backward(grad, output, 0)
    if activation == "leaky_relu":
        return torch.ops.aten.leaky_relu_backward(grad, output, slope, self_is_result=True)
    if activation == "tanh":
        return torch.ops.aten.tanh_backward(grad, output)
    if activation == "sigmoid":
        return torch.ops.aten.sigmoid_backward(grad, output)
    return grad
