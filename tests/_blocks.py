# SPDX-License-Identifier: MIT
"""One native block of kernel 4, stride 2, padding 1, with what its operator keeps for backward."""

from __future__ import annotations

import torch

from genimg_fast._block import Block
from genimg_fast.ops import block_chain


def train_block(transposed: bool, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None):
    """(output, raw output of the convolution, its mean and variance)."""
    block = Block(
        transposed,
        weight,
        bias,
        None,
        None,
        None,
        None,
        True,
        0.1,
        1e-5,
        (2, 2),
        (1, 1),
        (0, 0),
        (1, 1),
        1,
        "relu",
        0.0,
    )
    output, (raw,), (mean, var) = torch.ops.genimg_fast.block_chain_training(input, *block_chain.describe([block]))
    return output, raw, mean, var
