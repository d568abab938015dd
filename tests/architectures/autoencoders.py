# SPDX-License-Identifier: MIT
"""Variational autoencoders (Kingma and Welling 2014), one with a discriminator as its measure (Larsen et al. 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class ConvVAE(nn.Module):
    """encode() and decode() are methods, which users call by themselves; forward() returns three tensors."""

    def __init__(self, latent_dim=6, width=4):
        super().__init__()
        self.width = width
        self.conv1 = nn.Conv2d(3, width, 4, 2, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width * 2, 4, 2, 1)
        self.bn2 = nn.BatchNorm2d(width * 2)
        self.fc1 = nn.Linear(width * 2 * 16, 32)
        self.bn_fc1 = nn.BatchNorm1d(32)
        self.fc_mu = nn.Linear(32, latent_dim)
        self.fc_logvar = nn.Linear(32, latent_dim)

        self.fc3 = nn.Linear(latent_dim, width * 2 * 16)
        self.bn_fc3 = nn.BatchNorm1d(width * 2 * 16)
        self.deconv1 = nn.ConvTranspose2d(width * 2, width, kernel_size=4, stride=2, padding=1)
        self.bn3 = nn.BatchNorm2d(width)
        self.deconv2 = nn.ConvTranspose2d(width, 3, kernel_size=4, stride=2, padding=1)
        self.relu = nn.ReLU()

    def encode(self, x):
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.relu(self.bn2(self.conv2(h)))
        h = h.view(h.size(0), -1)
        h = self.relu(self.bn_fc1(self.fc1(h)))
        return self.fc_mu(h), self.fc_logvar(h)

    def reparameterize(self, mu, logvar):
        std = torch.exp(0.5 * logvar)
        eps = torch.randn(std.size(), dtype=std.dtype)
        return eps * std + mu

    def decode(self, z):
        z = self.relu(self.bn_fc3(self.fc3(z)))
        z = z.view(-1, self.width * 2, 4, 4)
        z = self.relu(self.bn3(self.deconv1(z)))
        return torch.sigmoid(self.deconv2(z))

    def forward(self, x):
        mu, logvar = self.encode(x)
        z = self.reparameterize(mu, logvar) if self.training else mu
        return self.decode(z), mu, logvar


class EncoderBlock(nn.Module):
    def __init__(self, channel_in, channel_out):
        super().__init__()
        self.conv = nn.Conv2d(channel_in, channel_out, kernel_size=5, padding=2, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(num_features=channel_out, momentum=0.9)

    def forward(self, ten, out=False, t=False):
        # the discriminator's measure of a reconstruction is this output as it is, before the normalisation
        if out:
            ten = self.conv(ten)
            ten_out = ten
            ten = self.bn(ten)
            ten = F.relu(ten, False)
            return ten, ten_out
        else:
            ten = self.conv(ten)
            ten = self.bn(ten)
            ten = F.relu(ten, True)
            return ten


class DecoderBlock(nn.Module):
    def __init__(self, channel_in, channel_out):
        super().__init__()
        self.conv = nn.ConvTranspose2d(channel_in, channel_out, 5, padding=2, stride=2, output_padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channel_out, momentum=0.9)

    def forward(self, ten):
        ten = self.conv(ten)
        ten = self.bn(ten)
        ten = F.relu(ten, True)
        return ten


class VAEGAN(nn.Module):
    def __init__(self, z_size=6, width=4):
        super().__init__()
        self.encoder = nn.ModuleList([EncoderBlock(3, width), EncoderBlock(width, width * 2)])
        self.encoder_fc = nn.Sequential(nn.Linear(width * 2 * 16, z_size), nn.BatchNorm1d(z_size), nn.ReLU(True))
        self.decoder_fc = nn.Linear(z_size, width * 2 * 16)
        layers_list = [DecoderBlock(width * 2, width), DecoderBlock(width, width)]
        layers_list.append(nn.Sequential(nn.Conv2d(width, 3, 5, 1, 2), nn.Tanh()))
        self.decoder = nn.Sequential(*layers_list)
        self.discriminator = nn.ModuleList([EncoderBlock(3, width), EncoderBlock(width, width)])

    def forward(self, ten):
        code = ten
        for lay in self.encoder:
            code = lay(code)
        code = self.encoder_fc(code.flatten(1))
        ten = self.decoder_fc(code).view(len(ten), -1, 4, 4)
        ten = self.decoder(ten)
        score, features = ten, None
        for i, lay in enumerate(self.discriminator):
            if i == 1:
                score, features = lay(score, True)
            else:
                score = lay(score)
        return ten, score, features
