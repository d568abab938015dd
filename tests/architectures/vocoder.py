# SPDX-License-Identifier: MIT
"""HiFi-GAN (Kong, Kim and Bae 2020): transposed convolutions of one dimension, with weight normalisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import weight_norm

LRELU_SLOPE = 0.1


class ResBlock(nn.Module):
    def __init__(self, channels, kernel_size=3, dilation=(1, 3)):
        super().__init__()
        self.convs = nn.ModuleList(
            [
                weight_norm(
                    nn.Conv1d(channels, channels, kernel_size, 1, dilation=d, padding=(kernel_size - 1) * d // 2)
                )
                for d in dilation
            ]
        )

    def forward(self, x):
        for c in self.convs:
            xt = F.leaky_relu(x, LRELU_SLOPE)
            xt = c(xt)
            x = xt + x
        return x


class HiFiGANGenerator(nn.Module):
    def __init__(self, mels=8, width=8, upsample_rates=(4, 2)):
        super().__init__()
        self.num_upsamples = len(upsample_rates)
        self.conv_pre = weight_norm(nn.Conv1d(mels, width, 7, 1, padding=3))
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for i, u in enumerate(upsample_rates):
            self.ups.append(weight_norm(nn.ConvTranspose1d(width // (2**i), width // (2 ** (i + 1)), u * 2, u, u // 2)))
            self.resblocks.append(ResBlock(width // (2 ** (i + 1))))
        self.conv_post = nn.Conv1d(width // (2**self.num_upsamples), 1, 7, 1, padding=3)

    def forward(self, x):
        x = self.conv_pre(x)
        for i in range(self.num_upsamples):
            x = F.leaky_relu(x, LRELU_SLOPE)
            x = self.ups[i](x)
            x = self.resblocks[i](x)
        x = F.leaky_relu(x)
        x = self.conv_post(x)
        x = torch.tanh(x)
        return x
