# SPDX-License-Identifier: MIT
"""The weight of a convolution and a resampling by two, as that of one convolution, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def resampling_weight(weight: torch.Tensor, pools: bool) -> torch.Tensor:
    # To double an image is a transposed convolution by ones, and a convolution one by the mirrored taps; to take the mean is a
    # convolution by quarters.  Two convolutions in turn are one by the product of their weights, whose taps are sums over two by two.
    taps = 0.25 * weight if pools else weight.flip(2, 3).transpose(0, 1)
    rows = F.pad(taps, (0, 0, 0, 1)) + F.pad(taps, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))
