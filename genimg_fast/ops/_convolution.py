# SPDX-License-Identifier: MIT
"""What the two convolution ops share: the checks of their arguments, what the kernels take, and parts of their backwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from numbers import Integral

import torch

from genimg_fast._block import Block, output_size
from genimg_fast.ops import _check


def pair(op: str, name: str, value: int | Sequence[int], minimum: int) -> tuple[int, int]:
    """An int, or one or two of them in a sequence, as (height, width), like torch's own arguments."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    values = values * 2 if len(values) == 1 else values
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
    groups: int,
    *,
    transposed: bool,
) -> None:
    """Whether the tensors go together.  `norm`: running_mean, running_var, bn_weight and bn_bias by name."""
    _check.tensor(op, input=input, weight=weight, bias=bias, **norm)
    _check.required(op, weight=weight)
    _check.same_dtype(op, input=input, weight=weight, bias=bias)
    if weight.dim() != 4:
        raise ValueError(f"{op}: weight must have 4 dimensions, got shape {tuple(weight.shape)}")
    if input.dim() not in (3, 4):
        raise ValueError(f"{op}: input must be (N, C, H, W) or (C, H, W), got shape {tuple(input.shape)}")
    if not isinstance(groups, (int, Integral)) or groups < 1:
        raise ValueError(f"{op}: groups must be an integer >= 1, got {groups!r}")
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
    if not normalizes and (norm["bn_weight"] is not None or norm["bn_bias"] is not None):
        raise ValueError(
            f"{op}: bn_weight and bn_bias are those of a batch normalisation: give running_mean and running_var too, or training=True"
        )
    if normalizes and input.dim() == 3:
        raise ValueError(
            f"{op}: batch normalisation needs a batch: input must be (N, C, H, W), got {tuple(input.shape)}"
        )


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
    norm = block.norm
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
