# SPDX-License-Identifier: MIT
"""A chain of convolution blocks in plain PyTorch, block by block."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from genimg_fast._block import Block
from genimg_fast.reference.conv2d_bn_act import conv2d_bn_act
from genimg_fast.reference.conv_transpose2d_bn_act import conv_transpose2d_bn_act


def block_chain(input: torch.Tensor, blocks: Sequence[Block]) -> torch.Tensor:
    for block in blocks:
        function = conv_transpose2d_bn_act if block.transposed else conv2d_bn_act
        input = function(input, **block.arguments())  # type: ignore[arg-type]
    return input
