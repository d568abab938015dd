# SPDX-License-Identifier: MIT
"""The sampling layer of a variational autoencoder."""

from __future__ import annotations

import torch
from torch import nn

from genimg_fast import functional


class Reparameterize(nn.Module):
    """Draws z ~ N(mu, exp(logvar)), in training and in eval alike: `functional.reparameterize` as a module.

    Shape:
        mu, logvar: any, both the same; z the same.
    """

    def forward(
        self, mu: torch.Tensor, logvar: torch.Tensor, *, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """A sample; generator draws the seed of its noise, by default torch's own of mu's device."""
        return functional.reparameterize(mu, logvar, generator=generator)
