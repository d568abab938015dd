# SPDX-License-Identifier: MIT
"""The fully connected GAN of Goodfellow et al., "Generative Adversarial Nets" (NeurIPS 2014), with batch normalisation."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from genimg_fast.models.base import GAN, check_positive
from genimg_fast.nn import Conv2dBNAct, FusedSequential


class DenseGAN(GAN):
    """A generator of Dense + BN + LeakyReLU layers; a discriminator of Conv2d + LeakyReLU + Dropout layers.

    Args:
        image_size: height and width of the images; 28 is MNIST's.
        channels: of the images.
        hidden: units of the generator's first layer; the second and third have twice and four times as many.
        latent: dimensions of the latent space.
        dropout: probability of a zeroed activation in the discriminator.
    """

    name = "dense_gan"

    def __init__(
        self, image_size: int = 28, channels: int = 1, hidden: int = 256, latent: int = 100, dropout: float = 0.3
    ):
        config = {
            "image_size": image_size,
            "channels": channels,
            "hidden": hidden,
            "latent": latent,
            "dropout": dropout,
        }
        check_positive(self.name, image_size=image_size, channels=channels, hidden=hidden, latent=latent)
        if isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1:
            raise ValueError(f"{self.name}: dropout must be at least 0 and less than 1, got {dropout!r}")
        super().__init__((channels, image_size, image_size), (latent,), config)
        self.generator = DenseGenerator(latent, hidden, self.image_shape)
        self.discriminator = DropoutDiscriminator(self.image_shape, dropout)


class DenseGenerator(nn.Module):
    """Latents (N, latent) to images (N, C, H, W) in [-1, 1]."""

    def __init__(self, latent: int, hidden: int, image_shape: tuple[int, int, int]):
        super().__init__()
        widths = [latent, hidden, 2 * hidden, 4 * hidden]
        layers: list[nn.Module] = []
        for cin, cout in pairwise(widths):
            layers += [nn.Linear(cin, cout, bias=False), nn.BatchNorm1d(cout), nn.LeakyReLU(0.2)]
        channels, height, width = image_shape
        self.main = FusedSequential(
            *layers, nn.Linear(widths[-1], channels * height * width), nn.Unflatten(1, image_shape), nn.Tanh()
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.main(z)


class DropoutDiscriminator(nn.Module):
    """Images (N, C, H, W) in [-1, 1] to logits (N,)."""

    def __init__(self, image_shape: tuple[int, int, int], dropout: float):
        super().__init__()
        channels, size, _ = image_shape
        size = -(-size // 4)  # each convolution halves it, rounding up
        self.main = FusedSequential(
            Conv2dBNAct(channels, 64, 5, 2, 2, batch_norm=False, activation="leaky_relu", negative_slope=0.2),
            nn.Dropout(dropout),
            Conv2dBNAct(64, 128, 5, 2, 2, batch_norm=False, activation="leaky_relu", negative_slope=0.2),
            nn.Dropout(dropout),
            nn.Flatten(),
            nn.Linear(128 * size * size, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x).flatten()
