# SPDX-License-Identifier: MIT
"""A chain of convolution blocks in plain PyTorch, block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from genimg_fast.reference.conv2d_bn_act import conv2d_bn_act
from genimg_fast.reference.conv_transpose2d_bn_act import conv_transpose2d_bn_act


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


def block_chain(input: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
    for block in blocks:
        function = conv_transpose2d_bn_act if block.transposed else conv2d_bn_act
        input = function(input, **block.arguments())  # type: ignore[arg-type]
    return input
