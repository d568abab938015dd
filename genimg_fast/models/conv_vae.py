# SPDX-License-Identifier: MIT
"""A convolutional VAE: Kingma and Welling's "Auto-Encoding Variational Bayes" (ICLR 2014) with the strided convolutions and
batch normalisation of Radford, Metz and Chintala (ICLR 2016)."""

from __future__ import annotations

from itertools import pairwise

from torch import nn

from genimg_fast.models.base import VAE, check_image_size, check_positive, stage_widths
from genimg_fast.nn import Conv2dBNAct, ConvTranspose2dBNAct, FusedSequential


class ConvVAE(VAE):
    """Convolutions (k4, s2, p1) + BN + LeakyReLU down to 4x4, transposed ones + BN + ReLU back up.

    The channels double on the way down: width, 2 * width, 4 * width and, at 64 pixels, 8 * width.

    Args:
        image_size: 32 or 64.
        channels: of the images.
        width: channels of the layer next to the image.
        latent: dimensions of the latent space.
        reconstruction: "bce_with_logits" or "mse".
    """

    name = "conv_vae"

    def __init__(
        self,
        image_size: int = 32,
        channels: int = 3,
        width: int = 32,
        latent: int = 64,
        reconstruction: str = "bce_with_logits",
    ):
        config = {
            "image_size": image_size,
            "channels": channels,
            "width": width,
            "latent": latent,
            "reconstruction": reconstruction,
        }
        check_image_size(self.name, image_size)
        check_positive(self.name, channels=channels, width=width, latent=latent)
        super().__init__((channels, image_size, image_size), (latent,), reconstruction, config)
        widths = stage_widths(image_size, width)
        top = widths[-1]
        self.encoder = FusedSequential(
            *(
                Conv2dBNAct(cin, cout, 4, 2, 1, activation="leaky_relu", negative_slope=0.2)
                for cin, cout in zip([channels, *widths], widths, strict=False)
            ),
            nn.Flatten(),
        )
        self.mu = nn.Linear(top * 4 * 4, latent)
        self.logvar = nn.Linear(top * 4 * 4, latent)
        up = widths[::-1]
        self.decoder = FusedSequential(
            nn.Linear(latent, top * 4 * 4),
            nn.Unflatten(1, (top, 4, 4)),
            nn.BatchNorm2d(top),
            nn.ReLU(),
            *(ConvTranspose2dBNAct(cin, cout, 4, 2, 1) for cin, cout in pairwise(up)),
            ConvTranspose2dBNAct(width, channels, 4, 2, 1, batch_norm=False, activation="none"),
        )
