# SPDX-License-Identifier: MIT
"""The weight of a convolution on a doubled image, as that of a transposed convolution, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def resize_convolution_weight(weight: torch.Tensor) -> torch.Tensor:
    # To double an image is a transposed convolution by ones, and a convolution one by the mirrored taps: the two in turn are one
    # by their product, which has the sum of the taps that meet the same pixel.
    taps = weight.flip(2, 3).transpose(0, 1)
    rows = F.pad(taps, (0, 0, 0, 1)) + F.pad(taps, (0, 0, 1, 0))
    return F.pad(rows, (0, 1)) + F.pad(rows, (1, 0))
