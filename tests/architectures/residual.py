# SPDX-License-Identifier: MIT
"""SNGAN (Miyato et al. 2018) and StarGAN v2 (Choi et al. 2020), activation before convolution; SRGAN (Ledig et al. 2017), sub-pixel
convolution."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


class GBlock(nn.Module):
    """The activation is an attribute that holds a function."""

    def __init__(self, in_channels, out_channels, activation=F.relu, upsample=True):
        super().__init__()
        self.activation = activation
        self.upsample = upsample
        self.learnable_sc = in_channels != out_channels or upsample
        self.c1 = nn.Conv2d(in_channels, out_channels, 3, 1, padding=1)
        self.c2 = nn.Conv2d(out_channels, out_channels, 3, 1, padding=1)
        self.b1 = nn.BatchNorm2d(in_channels)
        self.b2 = nn.BatchNorm2d(out_channels)
        if self.learnable_sc:
            self.c_sc = nn.Conv2d(in_channels, out_channels, 1, 1, padding=0)

    def _upsample_conv(self, x, conv):
        return conv(F.interpolate(x, scale_factor=2, mode="nearest"))

    def _residual(self, x):
        h = x
        h = self.b1(h)
        h = self.activation(h)
        h = self._upsample_conv(h, self.c1) if self.upsample else self.c1(h)
        h = self.b2(h)
        h = self.activation(h)
        h = self.c2(h)
        return h

    def _shortcut(self, x):
        if self.learnable_sc:
            x = self._upsample_conv(x, self.c_sc) if self.upsample else self.c_sc(x)
        return x

    def forward(self, x):
        return self._residual(x) + self._shortcut(x)


class SNGANGenerator(nn.Module):
    def __init__(self, nz=6, ngf=4, bottom_width=4):
        super().__init__()
        self.bottom_width = bottom_width
        self.l1 = nn.Linear(nz, (bottom_width**2) * ngf)
        self.block2 = GBlock(ngf, ngf)
        self.block3 = GBlock(ngf, ngf, upsample=False)
        self.b5 = nn.BatchNorm2d(ngf)
        self.c5 = nn.Conv2d(ngf, 3, 3, 1, padding=1)
        self.activation = nn.ReLU(True)
        nn.init.xavier_uniform_(self.l1.weight.data, 1.0)

    def forward(self, x):
        h = self.l1(x)
        h = h.view(x.shape[0], -1, self.bottom_width, self.bottom_width)
        h = self.block2(h)
        h = self.block3(h)
        h = self.b5(h)
        h = self.activation(h)
        return self.c5(h).tanh()


class DBlock(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.c1 = spectral_norm(nn.Conv2d(in_channels, out_channels, 3, 1, 1))
        self.c2 = spectral_norm(nn.Conv2d(out_channels, out_channels, 3, 1, 1))
        self.c_sc = nn.utils.spectral_norm(nn.Conv2d(in_channels, out_channels, 1, 1, 0))  # the older of the two ways

    def forward(self, x):
        h = self.c2(F.relu(self.c1(F.relu(x))))
        return F.avg_pool2d(h, 2) + F.avg_pool2d(self.c_sc(x), 2)


class SNGANDiscriminator(nn.Module):
    def __init__(self, ndf=4):
        super().__init__()
        self.block1 = DBlock(3, ndf)
        self.block2 = DBlock(ndf, ndf)
        self.l3 = spectral_norm(nn.Linear(ndf, 1))

    def forward(self, x):
        h = self.block2(self.block1(x))
        h = F.relu(h)
        h = h.sum(dim=(2, 3))
        return self.l3(h)


class DownsampledBlock(nn.Module):
    """Of StarGAN v2: without normalisation in the discriminator, with it in the encoder of the generator."""

    def __init__(self, in_channels, out_channels, normalize=False, downsample=True):
        super().__init__()
        self.normalize, self.downsample = normalize, downsample
        self.actv = nn.LeakyReLU(0.2)
        self.learned_sc = in_channels != out_channels
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, 1, 1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, 1, 1)
        if normalize:
            self.norm1 = nn.InstanceNorm2d(in_channels, affine=True)
            self.norm2 = nn.InstanceNorm2d(in_channels, affine=True)
        if self.learned_sc:
            self.conv1x1 = nn.Conv2d(in_channels, out_channels, 1, 1, 0, bias=False)

    def shortcut(self, x):
        if self.learned_sc:
            x = self.conv1x1(x)
        if self.downsample:
            x = F.avg_pool2d(x, 2)
        return x

    def residual(self, x):
        if self.normalize:
            x = self.norm1(x)
        x = self.actv(x)
        x = self.conv1(x)
        if self.downsample:
            x = F.avg_pool2d(x, 2)
        if self.normalize:
            x = self.norm2(x)
        x = self.actv(x)
        x = self.conv2(x)
        return x

    def forward(self, x):
        return (self.shortcut(x) + self.residual(x)) / math.sqrt(2)


class StarGANDiscriminator(nn.Module):
    def __init__(self, width=4, widest=8, size=16, normalize=False):
        super().__init__()
        blocks = [nn.Conv2d(3, width, 3, 1, 1)]
        while size > 4:
            blocks.append(DownsampledBlock(width, min(2 * width, widest), normalize))
            width, size = min(2 * width, widest), size // 2
        blocks += [nn.LeakyReLU(0.2), nn.Conv2d(width, width, 4, 1, 0), nn.LeakyReLU(0.2), nn.Conv2d(width, 2, 1, 1, 0)]
        self.main = nn.Sequential(*blocks)

    def forward(self, x):
        out = self.main(x)
        return out.view(out.size(0), -1)


class ResidualBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.bn1 = nn.BatchNorm2d(channels)
        self.prelu = nn.PReLU()
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x):
        residual = self.conv1(x)
        residual = self.bn1(residual)
        residual = self.prelu(residual)
        residual = self.conv2(residual)
        residual = self.bn2(residual)

        return x + residual


class UpsampleBlock(nn.Module):
    def __init__(self, in_channels, up_scale):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, in_channels * up_scale**2, kernel_size=3, padding=1)
        self.pixel_shuffle = nn.PixelShuffle(up_scale)
        self.prelu = nn.PReLU()

    def forward(self, x):
        x = self.conv(x)
        x = self.pixel_shuffle(x)
        x = self.prelu(x)
        return x


class SRGANGenerator(nn.Module):
    def __init__(self, width=4, residual_blocks=2):
        super().__init__()
        self.block1 = nn.Sequential(nn.Conv2d(3, width, kernel_size=9, padding=4), nn.PReLU())
        self.block2 = ResidualBlock(width)
        self.block3 = nn.Sequential(*[ResidualBlock(width) for _ in range(residual_blocks - 1)])
        self.block4 = nn.Sequential(nn.Conv2d(width, width, kernel_size=3, padding=1), nn.BatchNorm2d(width))
        self.block5 = nn.Sequential(UpsampleBlock(width, 2), nn.Conv2d(width, 3, kernel_size=9, padding=4))

    def forward(self, x):
        block1 = self.block1(x)
        block2 = self.block2(block1)
        block3 = self.block3(block2)
        block4 = self.block4(block3)
        block5 = self.block5(block1 + block4)
        return (block5.tanh() + 1) / 2
