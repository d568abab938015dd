# SPDX-License-Identifier: MIT
"""The order in which an image lies in memory, NCHW or channels_last: as PyTorch names it, and how to change it."""

from __future__ import annotations

from typing import Any

import torch


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
    if c == 1 or h == w == 1:  # either layout is this one; only the strides tell
        return image.reshape(n, h, w, c).permute(0, 3, 1, 2)
    return image.contiguous(memory_format=torch.channels_last)


def to_nchw(image: torch.Tensor) -> torch.Tensor:
    """Contiguous, and by its strides too, where one channel or one pixel leaves both orders possible: later layers go by them."""
    image = image.contiguous()
    return image if memory_format(image) is torch.contiguous_format else image.flatten().view(image.shape)


class Reordered(torch.autograd.Function):
    """`to_channels_last`, whose gradient is contiguous, as the image was: users take views of it, and F.instance_norm differentiates
    wrongly in another order than its input's."""

    @staticmethod
    def forward(ctx: Any, image: torch.Tensor) -> torch.Tensor:
        return to_channels_last(image)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        return to_nchw(grad)
