# SPDX-License-Identifier: MIT
"""DCGAN: Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial
Networks" (ICLR 2016)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from genimg_fast.models.base import GAN, check_image_size, check_positive, stage_widths
from genimg_fast.nn import FusedSequential


class DCGAN(GAN):
    """Generator 100-512-256-128-64-3 at 64x64 by default, and the discriminator that mirrors it.

    ``generator`` and ``discriminator`` have the ``state_dict`` keys of the widespread layout with one ``nn.Sequential`` called
    ``main``: ``main.0.weight``, ``main.1.running_mean`` and so on.

    Args:
        image_size: 32 (one stage less) or 64.
        channels: of the images.
        width: channels of the layer next to the image.
        latent: dimensions of the latent space; a latent has the shape (latent, 1, 1).
    """

    name = "dcgan"

    def __init__(self, image_size: int = 64, channels: int = 3, width: int = 64, latent: int = 100):
        config = {"image_size": image_size, "channels": channels, "width": width, "latent": latent}
        check_image_size(self.name, image_size)
        check_positive(self.name, channels=channels, width=width, latent=latent)
        super().__init__((channels, image_size, image_size), (latent, 1, 1), config)
        widths = stage_widths(image_size, width)
        self.generator = DCGANGenerator(latent, widths[::-1], channels)
        self.discriminator = DCGANDiscriminator(channels, widths)
        self.apply(init_weights)


class DCGANGenerator(nn.Module):
    """(N, latent, 1, 1) to images (N, C, H, W) in [-1, 1]: transposed convolutions + BN + ReLU, Tanh at the end.

    Args:
        latent: channels of the input.
        widths: channels of the stages, the 4x4 one first.
        channels: of the images.
    """

    def __init__(self, latent: int, widths: list[int], channels: int):
        super().__init__()
        layers: list[nn.Module] = []
        for stage, (cin, cout) in enumerate(zip([latent, *widths], widths, strict=False)):
            stride, padding = (2, 1) if stage else (1, 0)  # the first makes 4x4 of 1x1
            layers += [
                nn.ConvTranspose2d(cin, cout, 4, stride, padding, bias=False),
                nn.BatchNorm2d(cout),
                nn.ReLU(),
            ]
        layers += [nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1, bias=False), nn.Tanh()]
        self.main = FusedSequential(*layers)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.main(z)


class DCGANDiscriminator(nn.Module):
    """Images (N, C, H, W) in [-1, 1] to logits (N,): convolutions + BN + LeakyReLU, no BN after the first.

    Args:
        channels: of the images.
        widths: channels of the stages, the one next to the image first.
    """

    def __init__(self, channels: int, widths: list[int]):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1, bias=False), nn.LeakyReLU(0.2)]
        for cin, cout in pairwise(widths):
            layers += [nn.Conv2d(cin, cout, 4, 2, 1, bias=False), nn.BatchNorm2d(cout), nn.LeakyReLU(0.2)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, 1, 0, bias=False))
        self.main = FusedSequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.main(x).flatten()


@torch.no_grad()
def init_weights(module: nn.Module) -> None:
    """The paper's initial values: N(0, 0.02) for convolutions, N(1, 0.02) and 0 for batch normalisation."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
