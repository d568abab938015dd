# SPDX-License-Identifier: MIT
"""The fully connected VAE of Kingma and Welling, "Auto-Encoding Variational Bayes" (ICLR 2014)."""

from __future__ import annotations

from torch import nn

from genimg_fast.models.base import VAE, check_positive
from genimg_fast.nn import FusedSequential


class DenseVAE(VAE):
    """One hidden layer each way: by default 784-400-20 and back, for 28x28 images of one channel.

    Args:
        image_size: height and width of the images.
        channels: of the images.
        hidden: units of the hidden layer.
        latent: dimensions of the latent space.
        reconstruction: "bce_with_logits" or "mse".
    """

    name = "vae"

    def __init__(
        self,
        image_size: int = 28,
        channels: int = 1,
        hidden: int = 400,
        latent: int = 20,
        reconstruction: str = "bce_with_logits",
    ):
        config = {
            "image_size": image_size,
            "channels": channels,
            "hidden": hidden,
            "latent": latent,
            "reconstruction": reconstruction,
        }
        check_positive(self.name, image_size=image_size, channels=channels, hidden=hidden, latent=latent)
        super().__init__((channels, image_size, image_size), (latent,), reconstruction, config)
        pixels = channels * image_size * image_size
        self.encoder = FusedSequential(nn.Flatten(), nn.Linear(pixels, hidden), nn.ReLU())
        self.mu = nn.Linear(hidden, latent)
        self.logvar = nn.Linear(hidden, latent)
        self.decoder = FusedSequential(
            nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, pixels), nn.Unflatten(1, self.image_shape)
        )
