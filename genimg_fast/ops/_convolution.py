# SPDX-License-Identifier: MIT
"""What the two convolution ops share: the checks of their arguments, and parts of their fakes and backwards."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from genimg_fast.ops import _check


def pair(op: str, name: str, value: int | Sequence[int], minimum: int) -> tuple[int, int]:
    """An int or two of them as (height, width), like torch's own arguments."""
    values = (value, value) if isinstance(value, int) else tuple(value)
    if len(values) != 2 or any(v < minimum for v in values):
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
    activation: str,
    *,
    transposed: bool,
) -> None:
    """All checks but those of the geometry.  `norm`: running_mean, running_var, bn_weight and bn_bias by name."""
    _check.tensor(op, input=input, weight=weight, bias=bias, **norm)
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
    if (norm["running_mean"] is None) != (norm["running_var"] is None):
        raise ValueError(f"{op}: running_mean and running_var must be given together or not at all")
    if input.dim() == 3 and (training or norm["running_mean"] is not None):
        raise ValueError(
            f"{op}: batch normalisation needs a batch: input must be (N, C, H, W), got {tuple(input.shape)}"
        )
    _check.choice(op, "activation", activation, _check.ACTIVATION_NAMES)


def check_batch_statistics(op: str, output_shape: Sequence[int]) -> None:
    """Batch statistics need several values a channel."""
    n, _, h, w = output_shape
    if n * h * w == 1:
        raise ValueError(
            f"{op}: Expected more than 1 value per channel when training, got output size {tuple(output_shape)}"
        )


def slower(
    transposed: bool, weight: torch.Tensor, input_shape: Sequence[int], stride: tuple[int, int], records: bool
) -> str | None:
    """Why PyTorch's convolution is faster than the CPU kernels for a block; `records`: gradients will be wanted.

    From measurements on AVX-512 against oneDNN.  What the kernels are made for is kernel 4 with stride 2, kernel 3 with stride 1,
    and images of one pixel; elsewhere they have plain sums alone.
    """
    kernel = tuple(weight.shape[2:])
    n, _, h, w = input_shape
    if not transposed:
        h, w = h // stride[0], w // stride[1]  # of the small side, about
    made_for = (kernel, stride) == ((4, 4), (2, 2)) or (kernel, stride, transposed) == ((3, 3), (1, 1), False)
    one_pixel = h * w == 1 if transposed else kernel == tuple(input_shape[2:])
    if weight.numel() >= 1 << 20 and kernel == (3, 3) and n * h * w < 64:
        return f"packing a weight of {weight.numel()} values takes longer than {n * h * w} pixels save"
    if made_for or one_pixel:
        return None
    if not transposed or records:
        return f"PyTorch is faster at kernel {kernel}, stride {stride}"
    if stride == (1, 1) or (max(kernel) > 4 and n * h * w >= 512):
        return f"PyTorch is faster at kernel {kernel}, stride {stride} on {n * h * w} pixels"
    return None


def records_gradient(*tensors: torch.Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def memory_format(input: torch.Tensor) -> torch.memory_format:
    """That of the native ops' output: is_channels_last() of csrc/ops/convolution.h."""
    _, c, _, w = input.shape
    channels_last = c > 1 and input.stride()[1:] == (1, c * w, c)
    return torch.channels_last if channels_last else torch.contiguous_format


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
