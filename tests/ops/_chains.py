# SPDX-License-Identifier: MIT
"""A chain of convolution blocks that more than one file tests."""

from __future__ import annotations

import torch
from torch import nn

from genimg_fast.nn import FusedSequential


def generator() -> FusedSequential:
    """Every kind of block: no normalisation, batch statistics with and without affine, bias, each activation."""
    torch.manual_seed(0)
    return FusedSequential(
        *(nn.ConvTranspose2d(6, 9, 4, 1, 0), nn.BatchNorm2d(9), nn.ReLU()),
        *(nn.ConvTranspose2d(9, 8, 4, 2, 1), nn.LeakyReLU(0.3)),
        *(nn.Conv2d(8, 17, 3, 1, 1), nn.BatchNorm2d(17, affine=False), nn.Sigmoid()),
        *(nn.ConvTranspose2d(17, 5, 3, 2, 1, 1, bias=False), nn.BatchNorm2d(5)),
        *(nn.Conv2d(5, 7, 4, 2, 1, bias=False), nn.BatchNorm2d(7), nn.Tanh()),
        *(nn.ConvTranspose2d(7, 3, 4, 2, 1), nn.Tanh()),
    )
