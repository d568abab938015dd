# SPDX-License-Identifier: MIT
"""DCGAN (Radford, Metz and Chintala 2016), its layers as attributes, and by resize-convolution; WGAN-GP (Gulrajani et al. 2017), in
stages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class DCGANGenerator(nn.Module):
    """Layers as attributes, functional activations nested around them."""

    def __init__(self, nz=6, d=4):
        super().__init__()
        self.deconv1 = nn.ConvTranspose2d(nz, d * 4, 4, 1, 0)
        self.deconv1_bn = nn.BatchNorm2d(d * 4)
        self.deconv2 = nn.ConvTranspose2d(d * 4, d * 2, 4, 2, 1)
        self.deconv2_bn = nn.BatchNorm2d(d * 2)
        self.deconv3 = nn.ConvTranspose2d(d * 2, d, 4, 2, 1)
        self.deconv3_bn = nn.BatchNorm2d(d)
        self.deconv4 = nn.ConvTranspose2d(d, 3, 3, 1, 1)
        self.apply(self.weight_init)

    @staticmethod
    def weight_init(m):
        if isinstance(m, (nn.ConvTranspose2d, nn.Conv2d)):
            m.weight.data.normal_(0.0, 0.2)
            m.bias.data.zero_()

    def forward(self, input):
        x = F.relu(self.deconv1_bn(self.deconv1(input)))
        x = F.relu(self.deconv2_bn(self.deconv2(x)))
        x = F.relu(self.deconv3_bn(self.deconv3(x)))
        x = torch.tanh(self.deconv4(x))
        return x


class ResizeGenerator(nn.Module):
    """Upsampling and convolution in the place of a transposed one (Odena, Dumoulin and Olah 2016)."""

    def __init__(self, nz=6, ngf=8, size=16):
        super().__init__()
        self.init_size = size // 4
        self.l1 = nn.Sequential(nn.Linear(nz, ngf * 2 * self.init_size**2))
        self.conv_blocks = nn.Sequential(
            nn.BatchNorm2d(ngf * 2),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(ngf * 2, ngf * 2, 3, stride=1, padding=1),
            nn.BatchNorm2d(ngf * 2, 0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(ngf * 2, ngf, 3, stride=1, padding=1),
            nn.BatchNorm2d(ngf, 0.8),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ngf, 3, 3, stride=1, padding=1),
            nn.Tanh(),
        )

    def forward(self, z):
        out = self.l1(z)
        out = out.view(out.shape[0], -1, self.init_size, self.init_size)
        img = self.conv_blocks(out)
        return img


class DCGANDiscriminator(nn.Module):
    def __init__(self, d=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, d, 4, 2, 1)
        self.conv2 = nn.Conv2d(d, d * 2, 4, 2, 1)
        self.conv2_bn = nn.BatchNorm2d(d * 2)
        self.conv3 = nn.Conv2d(d * 2, 1, 4, 1, 0)

    def forward(self, input):
        x = F.leaky_relu(self.conv1(input), 0.2)
        x = F.leaky_relu(self.conv2_bn(self.conv2(x)), 0.2)
        x = torch.sigmoid(self.conv3(x))
        return x.view(-1, 1).squeeze(1)


class WGANGenerator(nn.Module):
    """Stages built by a function; a linear layer in front."""

    def __init__(self, nz=6, dim=4):
        super().__init__()

        def dconv_bn_relu(in_dim, out_dim):
            return nn.Sequential(
                nn.ConvTranspose2d(in_dim, out_dim, 5, 2, padding=2, output_padding=1, bias=False),
                nn.BatchNorm2d(out_dim),
                nn.ReLU(),
            )

        self.l1 = nn.Sequential(nn.Linear(nz, dim * 4 * 16, bias=False), nn.BatchNorm1d(dim * 4 * 16), nn.ReLU())
        self.l2_5 = nn.Sequential(
            dconv_bn_relu(dim * 4, dim * 2),
            nn.ConvTranspose2d(dim * 2, 3, 5, 2, padding=2, output_padding=1),
            nn.Tanh(),
        )

    def forward(self, z):
        y = self.l1(z)
        y = y.view(y.size(0), -1, 4, 4)
        y = self.l2_5(y)
        return y


class WGANCritic(nn.Module):
    """No batch normalisation, which would tie the examples of a batch together; layer normalisation of one, instance of the other."""

    def __init__(self, dim=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, dim, 5, 2, 2)
        self.conv2 = nn.Conv2d(dim, dim * 2, 5, 2, 2)
        self.norm2 = nn.InstanceNorm2d(dim * 2, affine=True)
        self.conv3 = nn.Conv2d(dim * 2, dim * 4, 5, 2, 2)
        self.norm3 = nn.LayerNorm([dim * 4, 2, 2])
        self.fc = nn.Linear(dim * 4 * 4, 1)
        self.lrelu = nn.LeakyReLU(0.2)

    def forward(self, x):
        out = self.lrelu(self.conv1(x))
        out = self.lrelu(self.norm2(self.conv2(out)))
        out = self.lrelu(self.norm3(self.conv3(out)))
        return self.fc(out.flatten(1))
