# SPDX-License-Identifier: MIT
"""The block GAN: figure 1 of Radford, Metz and Chintala (ICLR 2016), a latent "projected and reshaped", then stacked blocks."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from genimg_fast.models.base import GAN, check_image_size, check_positive, stage_widths
from genimg_fast.models.dcgan import init_weights
from genimg_fast.nn import Conv2dBNAct, ConvTranspose2dBNAct, FusedSequential


class BlockGAN(GAN):
    """The generator projects a latent to 4x4 and stacks ConvTranspose2d (k4, s2, p1) + BN + ReLU blocks up to the image.

    Args:
        image_size: 32 or 64.
        channels: of the images.
        width: channels of the layer next to the image; each smaller stage has twice as many.
        latent: dimensions of the latent space.
    """

    name = "block_gan"

    def __init__(self, image_size: int = 64, channels: int = 3, width: int = 64, latent: int = 128):
        config = {"image_size": image_size, "channels": channels, "width": width, "latent": latent}
        check_image_size(self.name, image_size)
        check_positive(self.name, channels=channels, width=width, latent=latent)
        super().__init__((channels, image_size, image_size), (latent,), config)
        widths = stage_widths(image_size, width)
        self.generator = BlockGenerator(latent, widths[::-1], channels)
        self.discriminator = BlockDiscriminator(channels, widths)
        self.apply(init_weights)


class BlockGenerator(nn.Module):
    """Latents (N, latent) to images (N, C, H, W) in [-1, 1].

    Args:
        latent: features of the input.
        widths: channels of the stages, the 4x4 one first.
        channels: of the images.
    """

    def __init__(self, latent: int, widths: list[int], channels: int):
        super().__init__()
        top = widths[0]
        self.project = FusedSequential(
            nn.Linear(latent, top * 4 * 4, bias=False), nn.Unflatten(1, (top, 4, 4)), nn.BatchNorm2d(top), nn.ReLU()
        )
        self.blocks = FusedSequential(
            *(ConvTranspose2dBNAct(cin, cout, 4, 2, 1) for cin, cout in pairwise(widths)),
            ConvTranspose2dBNAct(widths[-1], channels, 4, 2, 1, batch_norm=False, activation="tanh"),
        )

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.blocks(self.project(z))


class BlockDiscriminator(nn.Module):
    """Images (N, C, H, W) in [-1, 1] to logits (N,): blocks of Conv2d (k4, s2, p1) + BN + LeakyReLU, then a linear layer.

    Args:
        channels: of the images.
        widths: channels of the stages, the one next to the image first.
    """

    def __init__(self, channels: int, widths: list[int]):
        super().__init__()
        self.blocks = FusedSequential(
            *(
                Conv2dBNAct(cin, cout, 4, 2, 1, batch_norm=stage > 0, activation="leaky_relu", negative_slope=0.2)
                for stage, (cin, cout) in enumerate(zip([channels, *widths], widths, strict=False))
            )
        )
        self.head = FusedSequential(nn.Flatten(), nn.Linear(widths[-1] * 4 * 4, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(x)).flatten()
