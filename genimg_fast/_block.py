# SPDX-License-Identifier: MIT
"""A convolution block: a convolution, and the batch normalisation and activation after it, as all layers of the package hand it on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F


class Geometry(NamedTuple):
    """Of a convolution."""

    transposed: bool
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]
    dilation: tuple[int, int]

    def codes(self) -> list[int]:
        """As csrc/ops takes it."""
        return [int(self.transposed), *self.stride, *self.padding, *self.output_padding, *self.dilation]

    @staticmethod
    def of(codes: Sequence[int]) -> Geometry:
        transposed, s0, s1, p0, p1, o0, o1, d0, d1 = codes
        return Geometry(bool(transposed), (s0, s1), (p0, p1), (o0, o1), (d0, d1))

    def output_shape(self, input: torch.Tensor, weight: torch.Tensor) -> tuple[int, ...]:
        channels = weight.shape[1 if self.transposed else 0]
        return input.shape[0], channels, *output_size(self, input.shape, weight.shape)

    def convolve(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, groups: int = 1
    ) -> torch.Tensor:
        """By PyTorch."""
        stride, padding, dilation = self.stride, self.padding, self.dilation
        if self.transposed:
            return F.conv_transpose2d(input, weight, bias, stride, padding, self.output_padding, groups, dilation)
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)


class Block(NamedTuple):
    """The arguments of one `conv2d_bn_act` or `conv_transpose2d_bn_act`, but for its input."""

    transposed: bool
    weight: torch.Tensor
    bias: torch.Tensor | None
    running_mean: torch.Tensor | None
    running_var: torch.Tensor | None
    bn_weight: torch.Tensor | None
    bn_bias: torch.Tensor | None
    training: bool
    momentum: float
    eps: float
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]
    """Zeros where not transposed."""
    dilation: tuple[int, int]
    groups: int
    activation: str
    negative_slope: float

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.transposed, self.stride, self.padding, self.output_padding, self.dilation)

    @property
    def op(self) -> str:
        return "conv_transpose2d_bn_act" if self.transposed else "conv2d_bn_act"

    @property
    def out_channels(self) -> int:
        return self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0]

    def arguments(self) -> dict[str, object]:
        """Those of the function called `op`."""
        arguments = self._asdict()
        if not arguments.pop("transposed"):
            del arguments["output_padding"]
        return arguments

    @property
    def norm(self) -> tuple[torch.Tensor | None, ...]:
        return self.running_mean, self.running_var, self.bn_weight, self.bn_bias

    @property
    def parameters(self) -> tuple[torch.Tensor | None, ...]:
        """What gradients may be wanted of."""
        return self.weight, self.bias, self.bn_weight, self.bn_bias

    @property
    def normalizes(self) -> bool:
        return self.training or self.running_mean is not None

    def covers(self, input_shape: Sequence[int]) -> bool:
        """Whether the kernel is as large as the image, without padding: one pixel comes of each, by one matrix product."""
        kernel_is_image = tuple(self.weight.shape[2:]) == tuple(input_shape[2:])
        return kernel_is_image and not self.transposed and self.padding == (0, 0)

    def output_shape(self, input_shape: Sequence[int]) -> tuple[int, ...]:
        return input_shape[0], self.out_channels, *output_size(self, input_shape, self.weight.shape)


def output_size(geometry: Any, input_shape: Sequence[int], weight_shape: Sequence[int]) -> list[int]:
    """Height and width of what a convolution makes; `geometry` has the attributes of a `Block` that they depend on."""
    size = []
    for d in (0, 1):
        reach = geometry.dilation[d] * (weight_shape[d + 2] - 1) + 1 - 2 * geometry.padding[d]
        if geometry.transposed:
            size.append((input_shape[d + 2] - 1) * geometry.stride[d] + reach + geometry.output_padding[d])
        else:
            size.append((input_shape[d + 2] - reach) // geometry.stride[d] + 1)
    return size
